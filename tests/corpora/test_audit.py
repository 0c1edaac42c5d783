import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from sprachbund.corpora.audit import AuditRow, as_json, audit, render_audit
from sprachbund.errors import InputError
from sprachbund.recipe import Recipe

SWAHILI = [f"habari ya asubuhi namba {i}" for i in range(400)]
GREEK = [f"καλημέρα σας {i}" for i in range(200)]


def recipe(folder: Path, mixture: dict[str, object] | None = None, **texts: list[str]) -> Recipe:
    languages = {}
    for tag, documents in texts.items():
        (folder / f"{tag}.txt").write_text("\n".join(documents), encoding="utf-8")
        languages[tag] = str(folder / f"{tag}.txt")
    return Recipe.model_validate(
        {
            "name": "test",
            "base": "some/base",
            "languages": languages,
            "groups": {"count": 2},
            "mixture": mixture or {"temperature": 1.0},
            "train": {"tokens": 1000, "tokens_per_step": 64, "block_size": 64, "stages": [{"share": 1.0}]},
        }
    )


def row(**changes: object) -> AuditRow:
    values: dict[str, object] = {
        "tag": "swh_Latn",
        "name": "Swahili",
        "documents": 10,
        "bytes": 2_500_000,
        "tokens": None,
        "bytes_per_token": None,
        "share": 0.25,
        "duplicates": 0,
        "script_share": 1.0,
        "removed_lines": 0,
        "train_documents": 8,
        "dev_documents": 1,
        "test_documents": 1,
    }
    return AuditRow(**{**values, **changes})  # type: ignore[arg-type]


def test_a_row_counts_what_is_there(tmp_path: Path) -> None:
    swahili, greek = audit(recipe(tmp_path, swh_Latn=SWAHILI, ell_Grek=GREEK))
    assert (swahili.tag, swahili.name, swahili.documents, swahili.duplicates) == ("swh_Latn", "Swahili", 400, 0)
    assert swahili.train_documents + swahili.dev_documents + swahili.test_documents == 400
    assert swahili.bytes < sum(len(text) for text in SWAHILI)
    assert (swahili.tokens, swahili.bytes_per_token) == (None, None)
    assert swahili.share + greek.share == pytest.approx(1)
    assert swahili.share / greek.share == pytest.approx(swahili.bytes / greek.bytes)
    assert swahili.warnings() == greek.warnings() == []
    assert greek.script_share == 1


def test_tokens_are_counted_where_there_is_a_tokenizer(tmp_path: Path) -> None:
    rows = audit(
        recipe(tmp_path, swh_Latn=SWAHILI, ell_Grek=GREEK), tokenize=lambda texts: [[0] * len(t.split()) for t in texts]
    )
    assert [r.tokens for r in rows] == [5 * rows[0].train_documents, 3 * rows[1].train_documents]
    assert rows[0].bytes_per_token == pytest.approx(rows[0].bytes / rows[0].tokens)  # type: ignore[operator]


def test_unimax_is_audited_without_a_tokenizer_too(tmp_path: Path) -> None:
    rows = audit(recipe(tmp_path, {"method": "unimax", "max_epochs": 4.0}, swh_Latn=SWAHILI, ell_Grek=GREEK))
    assert [r.share for r in rows] == pytest.approx([0.5, 0.5])


def test_the_wrong_script_and_many_duplicates_are_warned_about(tmp_path: Path) -> None:
    swahili, greek = audit(
        recipe(tmp_path, swh_Latn=SWAHILI + SWAHILI[:120], ell_Grek=[f"jambo rafiki {i}" for i in range(400)])
    )
    assert swahili.duplicates == 120
    assert swahili.warnings() == ["swh_Latn: 23% of the documents are duplicates; remove them."]
    assert greek.warnings() == ["ell_Grek: only 0% of the letters are in the script Grek; is it the right text?"]


def test_the_bounds_themselves_are_no_reason_to_warn() -> None:
    assert row(script_share=0.5, duplicates=2).warnings() == []
    assert len(row(script_share=0.49, duplicates=3).warnings()) == 2


def test_an_unreadable_corpus_stops_the_audit(tmp_path: Path) -> None:
    broken = recipe(tmp_path, swh_Latn=SWAHILI, ell_Grek=GREEK)
    (tmp_path / "ell_Grek.txt").unlink()
    with pytest.raises(InputError, match=r"ell_Grek\.txt does not exist"):
        audit(broken)


def test_the_table_shows_the_rows_and_the_warnings_below() -> None:
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(render_audit([row(), row(tag="ell_Grek", name="[bold]Greek", script_share=0.25, tokens=1234567)]))
    text = console.export_text()
    assert "swh_Latn" in text
    assert "2.50" in text
    assert "25.0%" in text
    assert "8/1/1" in text
    assert "1,234,567" in text
    assert "[bold]Greek" in text
    assert "ell_Grek: only 25% of the letters are in the script Grek" in text


def test_json_holds_every_field_and_the_warnings() -> None:
    values = json.loads(json.dumps(as_json([row(duplicates=9)])))
    assert values[0]["train_documents"] == 8
    assert values[0]["tokens"] is None
    assert values[0]["warnings"] == ["swh_Latn: 90% of the documents are duplicates; remove them."]
