"""The report of an adaptation says what was added, what was lost, worst first, and which group is the nearest."""

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from test_report_page import Page

from sprachbund.errors import InputError
from sprachbund.report import write_adapt_report

MODES = ("group", "prefix", "counts", "top_k")


def score(perplexity: float) -> dict[str, float]:
    return {
        "perplexity": perplexity, "perplexity_after_burn_in": perplexity * 0.9,
        "bits_per_byte": math.log2(perplexity) / 2.5, "bits_per_byte_after_burn_in": math.log2(perplexity * 0.9) / 2.5,
    }  # fmt: skip


def old(perplexity: float, **changes: float) -> dict[str, Any]:
    """One old language, whose perplexity changes by as much under each mode."""
    return {
        "new": False,
        "before": {mode: score(perplexity) for mode in MODES},
        "after": {mode: score(perplexity * (1 + changes.get(mode, 0.0))) for mode in MODES},
        "routed": {mode: 0.0 if mode == "group" else 0.00011 for mode in MODES},
    }


def facts() -> dict[str, Any]:
    """A complete adapt.json."""
    return {
        "schema": 1, "package": "0.1.0", "source": "runs/bible-18", "path": "full", "gate": "mixture", "seed": 3,
        "tokens": 327_680, "learning_rate": 0.01, "base_parameters": 1_572_512,
        "languages": {
            "mam_Latn": {
                "group_id": 18, "parent": {"group": 4, "languages": ["quc_Latn", "cak_Latn"]}, "start": None,
                "train_tokens": 412_345, "train_bytes": 812_345, "bytes_per_token": 1.97,
                "warnings": ["mam_Latn: <b>1.97</b> bytes per token; the least of the others has 3.1"],
                "under_groups": [
                    {"group": 4, "languages": ["quc_Latn", "cak_Latn"], "perplexity": 812.5, "bits_per_byte": 4.63},
                    {"group": 0, "languages": ["ell_Grek"], "perplexity": 9012.0, "bits_per_byte": 5.9},
                ],
                "parameters": 252_990, "share_of_dense": 0.642, "extension": 0,
            },
        },
        "scores": {
            "swh_Latn": old(40.0, prefix=0.000009, counts=0.00004),
            "ukr_Cyrl": old(30.0, prefix=0.000008, counts=0.0009, top_k=-0.0001),
            "mam_Latn": {
                "new": True, "before": {mode: score(800.0) for mode in MODES},
                "after": {mode: score(9.0 + i / 10) for i, mode in enumerate(MODES)},
                "routed": {"group": 0.0, "prefix": 0.02, "counts": 0.01, "top_k": 0.02},
            },
        },
        "forgetting": {
            "limit": 0.001, "worst": {"language": "ukr_Cyrl", "mode": "counts", "change": 0.0009}, "holds": True,
        },
        "seconds": {"train": 21.3, "evaluate": 65.0},
    }  # fmt: skip


def page(folder: Path, content: dict[str, Any]) -> Page:
    (folder / "adapt.json").write_text(json.dumps(content), encoding="utf-8")
    found = Page(write_adapt_report(folder).read_text(encoding="utf-8"))
    assert found.open == []
    return found


def test_the_page_says_what_was_added_and_what_it_gained(tmp_path: Path) -> None:
    found = page(tmp_path, facts())
    text = found.text.replace("\xa0", " ")
    assert "Mam, added later" in text
    assert (
        "Mam was given a path “full” of 252,990 parameters (64 % of the dense model), on top of group 4 (Kʼicheʼ, "
        "Kaqchikel). The training took 327,680 tokens." in text
    )
    before, after, told_nothing = (math.log2(value) / 2.5 for value in (800.0, 9.0, 9.1))
    assert (
        f"Mam now has {after:.3f} bits per byte told the language, before {before:.3f}; {told_nothing:.3f} bits per "
        f"byte told nothing, before {before:.3f}." in text
    )
    (row,) = [row for row in found.rows if row[0] == "group told the language" and len(row) == 6 and "%" in row[5]][-1:]
    assert [cell.replace("\xa0", " ") for cell in row[1:]] == [
        f"{before:.3f}", f"{after:.3f}", "800.00", "9.00", "0.0 %",
    ]  # fmt: skip


def test_old_languages_come_worst_first_under_every_mode(tmp_path: Path) -> None:
    found = page(tmp_path, facts())
    tags = [row[1].strip() for row in found.rows if len(row) == 9 and row[1].strip() in ("swh_Latn", "ukr_Cyrl")]
    assert len(tags) == 8
    assert tags[2:] == ["swh_Latn", "ukr_Cyrl", "ukr_Cyrl", "swh_Latn", "swh_Latn", "ukr_Cyrl"]
    changes = [row[2].strip() for row in found.rows if len(row) == 9 and row[1].strip() == "ukr_Cyrl"]
    assert changes == ["0", "+0.0008%", "+0.0900%", "−0.0100%"]
    assert "No language lost more than the limit of 0.10%; the worst is Ukrainian under counts, +0.0900%." in found.text
    summary = [cell.replace("\xa0", " ").strip() for cell in found.row("counts told nothing, counts decide")]
    assert summary[2:] == ["+0.0900%", "Ukrainian", "0.01 %", "0.01 %"]
    assert "▲" not in "".join(cell for row in found.rows for cell in row)


def test_no_loss_at_all_is_said_so(tmp_path: Path) -> None:
    content = facts()
    content["forgetting"]["worst"]["change"] = 0.0
    text = page(tmp_path, content).text
    assert "No language lost anything, in any mode. Changes are of perplexity" in text


def test_a_loss_above_the_limit_is_marked_and_called_so(tmp_path: Path) -> None:
    content = facts()
    content["scores"]["ukr_Cyrl"] = old(30.0, counts=0.02)
    content["forgetting"] = {
        "limit": 0.001, "worst": {"language": "ukr_Cyrl", "mode": "counts", "change": 0.02}, "holds": False,
    }  # fmt: skip
    found = page(tmp_path, content)
    assert "The model has forgotten: the limit is 0.10%; the worst is Ukrainian under counts, +2.00%." in found.text
    marked = [row[1].strip() for row in found.rows if len(row) == 9 and "▲" in row[2]]
    assert marked == ["ukr_Cyrl"]


def test_the_nearest_group_is_marked(tmp_path: Path) -> None:
    found = page(tmp_path, facts())
    nearest = [row for row in found.rows if row[1].endswith("nearest")]
    assert [row[0] for row in nearest] == ["4"]
    assert found.row("0")[1:] == ["ell_Grek", "9012.00", "5.900"]


def test_what_was_not_measured_is_said(tmp_path: Path) -> None:
    content = facts()
    del content["scores"]["swh_Latn"], content["scores"]["ukr_Cyrl"]
    content["forgetting"]["worst"] = None
    content["languages"]["mam_Latn"] = {"group_id": 18}
    text = page(tmp_path, content).text
    assert "No old language was scored: their corpora were not at hand" in text
    assert "Mam was given a path “full”. The training took 327,680 tokens." in text


@pytest.mark.parametrize(
    ("path", "changes", "sentence"),
    [
        (
            "paper",
            {},
            "Mam and Aguacateco were given a group of their own, the path “paper”, of 252,990 parameters (64 % of the "
            "dense model) copied from group 4 (Kʼicheʼ, Kaqchikel).",
        ),
        (
            "lean",
            {"joined": 4},
            "Mam and Aguacateco joined group 4, whose own part of 252,990 parameters (64 % of the dense model) was "
            "trained further.",
        ),
        (
            "lean",
            {"extension": 1024, "parent": {"group": 0}},
            "Mam and Aguacateco were given a path “lean” of 252,990 parameters (64 % of the dense model), on top of "
            "group 0, with 1,024 tokens of its own.",
        ),
    ],
)
def test_languages_that_share_what_was_added_are_named_together(
    path: str, changes: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    content = facts()
    first = {**content["languages"]["mam_Latn"], "shares_with": ["agu_Latn"], **changes}
    content["languages"] = {"mam_Latn": first, "agu_Latn": {**first, "shares_with": ["mam_Latn"]}}
    content["path"] = path
    found = page(tmp_path, content)
    assert sentence in found.text.replace("\xa0", " ")
    assert found.row("shares its path with")[1] == "agu_Latn"
    assert ("are of other tokens and cannot be compared" in found.text) == ("extension" in changes)


def test_what_a_file_says_is_text_and_the_page_needs_nothing_else(tmp_path: Path) -> None:
    content = facts()
    content["source"] = "<script>bad()</script>\x00"
    content["languages"]["mam_Latn"]["under_groups"][0]["languages"] = ["<img src=x>"]
    found = page(tmp_path, content)
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<script>bad" not in html
    assert "<img src=x>" not in html
    assert "\x00" not in html
    assert found.count("script") == 1
    assert "<b>1.97</b> bytes per token" in found.text
    assert "http" not in html.replace("http-equiv", "")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda content: content.update(schema=2), "found schema 2, and this version reads schema 1; adapt again."),
        (lambda content: content.pop("path"), "at path: field required; adapt again."),
        (lambda content: content["scores"]["swh_Latn"].pop("after"), "at scores.swh_Latn.after: field required; "),
    ],
)
def test_a_malformed_file_is_one_sentence(change: Any, sentence: str, tmp_path: Path) -> None:
    content = facts()
    change(content)
    (tmp_path / "adapt.json").write_text(json.dumps(content))
    with pytest.raises(InputError) as error:
        write_adapt_report(tmp_path)
    assert sentence in str(error.value)
    assert not (tmp_path / "report.html").exists()


def test_no_file_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"there is no adapt\.json; give a folder that `sprachbund adapt` wrote\."):
        write_adapt_report(tmp_path)


def test_pictures_of_bare_files_do_not_wait_for_torch() -> None:
    program = "import sys, sprachbund.report\nprint('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
