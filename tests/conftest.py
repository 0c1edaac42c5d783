"""What many tests share: the command line in this process, a tiny recipe, and one finished run of it."""

import json
import os
import random
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from command_line import CommandLine, command_line

# Before torch and huggingface_hub are imported: no test may reach the network, and on matrices this small one thread
# is the fastest and gives the same sums everywhere.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A background job of a shell, and all that it starts, ignores Ctrl-C; some tests are about it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

TINY = """\
name: tiny
base:
  scratch: {family: llama, hidden_size: 16, num_layers: 2, ffn_size: 32, num_heads: 2, vocab_size: 300,
            tokens: 1536, tokens_per_step: 256, learning_rate: 5.0e-3}
languages:
  ron_Latn: corpora/ron.jsonl
  ita_Latn: corpora/ita.jsonl
  rus_Cyrl: corpora/rus.jsonl
  ukr_Cyrl: corpora/ukr.jsonl
splits: {dev: 0.1, test: 0.1}
probe: {steps: 2, tokens_per_step: 128, learning_rate: 3.0e-3, sketch_size: 512}
groups: {count: 2}
experts: {by: group, rows: null, budget: null}
train: {tokens: 2560, tokens_per_step: 256, block_size: 32, learning_rate: 1.0e-2}
evaluate: {burn_in: 8, tokens: 256}
"""  # experts by group: what a native architecture can hold; the preset's own are tested in tests/run/test_presets.py
LETTERS = {"ron": "aeiouăîșțrlnm", "ita": "aeiourlnmtcvg", "rus": "аеиорлнмтквыэ", "ukr": "аеиорлнмтквії"}


@pytest.fixture(scope="session")
def cli() -> CommandLine:
    """Return a function that runs the command line in this process, from its arguments to its exit status."""
    return command_line


@pytest.fixture(scope="session", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep packed corpora out of the user's cache."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("SPRACHBUND_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def write_corpora(folder: Path) -> None:
    """Write four languages of made-up words in two alphabets: 80 documents each, the same on every machine."""
    folder.mkdir()
    for language, letters in LETTERS.items():
        draw = random.Random(language)
        words = ["".join(draw.choices(letters, k=draw.randint(2, 7))) for _ in range(60)]
        texts = [" ".join(draw.choices(words, k=12)) for _ in range(80)]
        lines = [json.dumps({"text": text}, ensure_ascii=False) for text in texts]
        (folder / f"{language}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_tiny(folder: Path) -> Path:
    """Write the tiny recipe and its corpora, and return the path of the recipe."""
    write_corpora(folder / "corpora")
    (folder / "tiny.yaml").write_text(TINY, encoding="utf-8")
    return folder / "tiny.yaml"


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """A recipe of four languages in two groups; a whole run of it takes seconds. It may be changed."""
    return write_tiny(tmp_path)


@pytest.fixture(scope="session")
def shared_tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same recipe in a folder of all tests: copies of the finished run refer to its corpora. Do not change it."""
    return write_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def finished(shared_tiny: Path, cli: CommandLine) -> Path:
    """The folder of a finished run of the tiny recipe. Do not change it: copy it."""
    folder = shared_tiny.parent / "finished"
    said = cli("run", shared_tiny, "--out", folder)
    assert said.status == 0, said.err
    return folder
