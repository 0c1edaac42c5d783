"""What the corpora are, before anything is trained: size, share, duplicates, script and splits of each language."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from rich.markup import escape
from rich.table import Table

from sprachbund.corpora.bad_lines import skipped_warning
from sprachbund.corpora.documents import Documents, SplitDocuments, batches, total_bytes, total_characters
from sprachbund.corpora.mixture import shares
from sprachbund.corpora.overlap import shared_documents, shared_warning
from sprachbund.corpora.packing import BYTES_AT_ONCE, DOCUMENTS_AT_ONCE, Tokenize
from sprachbund.corpora.splits import split_documents
from sprachbund.languages import display_name, script_of, script_share
from sprachbund.recipe import Recipe

LEAST_SCRIPT_SHARE = 0.5
MOST_DUPLICATES = 0.2
SCRIPT_SAMPLE_CHARACTERS = 200_000
ASSUMED_BYTES_PER_TOKEN = 4.0  # only where unimax needs a budget in bytes and no tokenizer is at hand


@dataclass(frozen=True)
class AuditRow:
    """One language's corpus.

    `documents` counts what was read, `duplicates` how many of these equal an earlier one. `bytes` (UTF-8) and `tokens`
    are of the training split. `share` is the mixture's before groups are known (balanced groups change it).
    `script_share` is the share of the training text's letters that are in the script which the tag names.
    `skipped` counts what is none of the documents, by reason (`SplitDocuments.skipped`); `shared` are the shares of the
    documents, each counted once, that other languages have too (`shared_documents`).
    """

    tag: str
    name: str
    documents: int
    bytes: int
    tokens: int | None
    bytes_per_token: float | None
    share: float
    duplicates: int
    script_share: float
    removed_lines: int
    train_documents: int
    dev_documents: int
    test_documents: int
    skipped: dict[str, int] = field(default_factory=dict)
    shared: dict[str, float] = field(default_factory=dict)

    def warnings(self) -> list[str]:
        """Return a sentence for each thing about this corpus that its user should look at."""
        found = []
        if self.script_share < LEAST_SCRIPT_SHARE:
            found.append(
                f"{self.tag}: only {self.script_share:.0%} of the letters are in the script {script_of(self.tag)}; "
                "is it the right text?"
            )
        if self.duplicates > MOST_DUPLICATES * self.documents:
            found.append(
                f"{self.tag}: {self.duplicates / self.documents:.0%} of the documents are duplicates; remove them."
            )
        said = (skipped_warning(self.skipped, self.documents), shared_warning(self.shared))
        return found + [f"{self.tag}: {warning}" for warning in said if warning]


def audit(
    recipe: Recipe,
    *,
    documents: Mapping[str, SplitDocuments] | None = None,
    tokenize: Tokenize | None = None,
    tokens: Mapping[str, int] | None = None,
) -> list[AuditRow]:
    """Return one row per language, in the recipe's order; reads the corpora where `documents` does not hold them.

    Why first: a wrong script, a copied file or an empty split is found in seconds here and in hours later. With
    `tokenize` the training split is tokenised as well, to count tokens and bytes per token; `tokens` has these counts
    where they are known.

    Raises:
        InputError: a corpus cannot be read or leaves a split empty.
    """
    if documents is None:
        sources = recipe.languages.items()
        documents = {tag: split_documents(source, recipe.splits, seed=recipe.seed) for tag, source in sources}
    shared = shared_documents({tag: mine.all_documents() for tag, mine in documents.items()})
    rows: dict[str, dict[str, Any]] = {}
    for tag in recipe.languages:
        mine = documents[tag]
        counted = tokens[tag] if tokens is not None else None if tokenize is None else num_tokens(mine.train, tokenize)
        rows[tag] = {**_measured(tag, mine, counted), "shared": shared[tag]}
    sizes = {tag: int(row["bytes"]) for tag, row in rows.items()}
    all_tokens = sum(row["tokens"] or 0 for row in rows.values())
    bytes_per_token = sum(sizes.values()) / all_tokens if all_tokens else ASSUMED_BYTES_PER_TOKEN
    share = shares(sizes, recipe.mixture, budget_bytes=recipe.train.tokens * bytes_per_token)
    return [AuditRow(share=share[tag], **row) for tag, row in rows.items()]


def num_tokens(documents: Iterable[str], tokenize: Tokenize) -> int:
    """Return the number of tokens of all documents together."""
    pieces = batches(documents, most=DOCUMENTS_AT_ONCE, most_bytes=BYTES_AT_ONCE)
    return sum(len(ids) for piece in pieces for ids in tokenize(piece))


def _measured(tag: str, documents: SplitDocuments, counted: int | None) -> dict[str, Any]:
    num_bytes = total_bytes(documents.train)
    return {
        "tag": tag,
        "name": display_name(tag),
        "documents": documents.documents,
        "bytes": num_bytes,
        "tokens": counted,
        "bytes_per_token": num_bytes / counted if counted else None,
        "duplicates": documents.duplicates,
        "script_share": script_share(sample_text(documents.train), script_of(tag)),
        "removed_lines": documents.removed_lines,
        "train_documents": len(documents.train),
        "dev_documents": len(documents.dev),
        "test_documents": len(documents.test),
        "skipped": documents.skipped,
    }


def sample_text(documents: Documents) -> str:
    """Return text from all over the corpus: the script of a megabyte is known from a part of it."""
    step = max(1, total_characters(documents) // SCRIPT_SAMPLE_CHARACTERS)
    return "\n".join(documents[::step])[: 2 * SCRIPT_SAMPLE_CHARACTERS]


def render_audit(rows: Sequence[AuditRow]) -> Table:
    """Return the rows as a table for a terminal; the warnings of `AuditRow.warnings` stand below it."""
    notes = [escape(warning) for row in rows for warning in row.warnings()]
    table = Table(title="Corpora", caption="\n".join(notes) or None, caption_justify="left", caption_style="yellow")
    table.add_column("language")
    table.add_column("name")
    for title in (
        "documents",
        "MB",
        "tokens",
        "bytes/token",
        "share",
        "duplicates",
        "shared",
        "script",
        "removed lines",
        "skipped",
    ):
        table.add_column(title, justify="right")
    table.add_column("train/dev/test", justify="right")
    for row in rows:
        table.add_row(
            row.tag,
            escape(row.name),
            f"{row.documents:,}",
            f"{row.bytes / 1e6:.2f}",
            "-" if row.tokens is None else f"{row.tokens:,}",
            "-" if row.bytes_per_token is None else f"{row.bytes_per_token:.2f}",
            f"{row.share:.1%}",
            f"{row.duplicates:,}",
            f"{max(row.shared.values(), default=0):.1%}",
            f"{row.script_share:.0%}",
            f"{row.removed_lines:,}",
            f"{sum(row.skipped.values()):,}",
            f"{row.train_documents:,}/{row.dev_documents:,}/{row.test_documents:,}",
            style="yellow" if row.warnings() else None,
        )
    return table


def as_json(rows: Sequence[AuditRow]) -> list[dict[str, Any]]:
    """Return the rows as values that `json` writes, each with its warnings."""
    return [{**asdict(row), "warnings": row.warnings()} for row in rows]
