"""What was left out of the corpora stands on the page."""

import json
from pathlib import Path

import pytest

from sprachbund.errors import InputError
from sprachbund.report import write_report

LANGUAGES = ("acu_Latn", "agr_Latn", "arb_Arab")


def page(folder: Path, **facts: object) -> str:
    found = {tag: facts.get(tag, {"skipped": {}, "shared": {}, "tokens": 9}) for tag in LANGUAGES}
    (folder / "corpora.json").write_text(json.dumps(found))
    return " ".join(write_report(folder).read_text(encoding="utf-8").split())


def test_reasons_and_shares_are_shown_for_the_languages_that_have_any(run_folder: Path) -> None:
    agr = {"skipped": {"empty": 2, "not <b>UTF-8": 1004}, "shared": {"acu_Latn": 0.125, "arb_Arab": 0.01}}
    html = page(run_folder, agr_Latn=agr, arb_Arab={"skipped": {"too long": 1}, "shared": {}})
    rows = html.partition('<h2 id="corpora">')[2].partition("<tbody>")[2].partition("</tbody>")[0]
    assert rows.count("<tr>") == 2
    assert "1,004 not &lt;b&gt;UTF-8, 2 empty</td>" in rows
    assert "12.5 %</td><td><bdi>Achuar</bdi>" in rows
    assert "1 too long" in rows
    assert "none</td>" in rows


def test_nothing_left_out_is_said_and_not_counted_is_not_taken_for_it(run_folder: Path) -> None:
    nothing, unknown = "Every line of the corpora gave a document", "was not counted in this run"
    html = page(run_folder)
    assert nothing in html
    assert unknown not in html
    html = page(run_folder, agr_Latn={"tokens": 9})  # a run from before it was counted
    assert unknown in html
    assert nothing not in html
    (run_folder / "corpora.json").unlink()
    assert unknown in write_report(run_folder).read_text(encoding="utf-8")


def test_a_file_that_no_run_wrote_is_a_sentence(run_folder: Path) -> None:
    with pytest.raises(InputError, match=r"corpora\.json: at agr_Latn\.skipped: .* run the stage corpora again\.$"):
        page(run_folder, agr_Latn={"skipped": [1]})
