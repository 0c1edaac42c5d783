"""The report holds what the run's files say, as text, and needs nothing but itself."""

import json
import os
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from sprachbund.report import write_report

Edit = Callable[[Callable[[dict[str, Any]], object]], None]
VOID = {"meta", "br", "hr", "img", "link", "input"}


class Page(HTMLParser):
    """The page's elements, its visible text and the text of each table row."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.rows: list[list[str]] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th") and self.rows:
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes something else"

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if not {"script", "style"} & set(self.open):
            self.text += data
            if {"td", "th"} & set(self.open):
                self.rows[-1][-1] += data

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.elements)

    def row(self, first: str) -> list[str]:
        """The first table row whose first cell reads `first`."""
        return next(cells for row in self.rows if (cells := [cell.strip() for cell in row]) and cells[0] == first)


def report(folder: Path) -> Page:
    page = Page(write_report(folder).read_text(encoding="utf-8"))
    assert page.open == []
    return page


def test_summary_gives_the_numbers(run_folder: Path) -> None:
    text = report(run_folder).text.replace("\xa0", " ")
    assert "18 languages were put into 6 groups, and each group has its own expert in 3 of 4 layers." in text
    assert "trained on 921,600 tokens after 2,304,000 tokens for the base model" in text
    assert "trained further on the same number of tokens" in text
    assert "Told nothing about the language (prefix), its perplexity after the first 32 tokens is 14.2 % lower" in text
    assert "lower in 17 of 18 languages (worst: Українська, +2.1 %)" in text
    assert "told the group (group), its perplexity after the first 32 tokens is 18.0 % lower" in text


def test_a_loss_is_called_a_loss(run_folder: Path, edit_metrics: Edit) -> None:
    edit_metrics(lambda metrics: metrics["change_vs_dense"]["prefix"].update(average=0.034))
    page = report(run_folder)
    assert "3.4\xa0% higher than the control’s on average" in page.text
    assert "▲ +3.4" in page.row("Average")[3]


def test_unequal_tokens_are_not_called_equal(run_folder: Path, edit_metrics: Edit) -> None:
    edit_metrics(lambda metrics: metrics["tokens"].update(dense=500_000))
    text = report(run_folder).text
    assert "trained further on 500,000 tokens" in text
    assert "same number of tokens" not in text


def test_table_has_every_language_and_marks_losing_cells_in_words(run_folder: Path) -> None:
    page = report(run_folder)
    ukrainian = page.row("Українська")
    assert ukrainian[1:4] == ["ukr_Cyrl", "5", "▲ +2.1 (worse than dense)"]
    assert "▲" not in ukrainian[4]
    metrics = json.loads((run_folder / "metrics.json").read_text(encoding="utf-8"))
    expected = metrics["languages"]["ukr_Cyrl"]["bits_per_byte"]
    assert ukrainian[5:] == [f"{expected[way]:.3f}" for way in ("base", "dense", "prefix", "group", "top_k")]
    assert page.row("العربية")[1] == "arb_Arab"
    main_table = [row[1].strip() for row in page.rows if len(row) == 10][1:-1]
    assert main_table == sorted(main_table, key=lambda tag: metrics["languages"][tag]["group"])
    assert len(main_table) == 18


def test_changes_too_small_to_show_are_neither_win_nor_loss(run_folder: Path, edit_metrics: Edit) -> None:
    def equal(metrics: dict[str, Any]) -> None:
        scores = metrics["languages"]["swh_Latn"]["perplexity_after_burn_in"]
        scores["prefix"] = scores["dense"] * 1.0004

    edit_metrics(equal)
    page = report(run_folder)
    assert page.row("Kiswahili")[3] == "0.0"
    assert "lower in 16 of 18 languages" in page.text


def test_file_contents_are_text_never_markup(run_folder: Path, edit_metrics: Edit) -> None:
    evil = '<script>alert(1)</script>"><img src=x onerror=alert(1)>'

    def poison(metrics: dict[str, Any]) -> None:
        metrics["name"] = metrics["package"] = metrics["preset"] = evil
        for language in metrics["languages"].values():
            language["name"] = evil

    edit_metrics(poison)
    (run_folder / "recipe.yaml").write_text(f"name: {evil}</code></pre></details>")
    page = report(run_folder)
    assert page.count("script") == 1
    assert page.count("img") == 0
    assert not any(name.startswith("on") for _, attributes in page.elements for name in attributes)
    assert page.text.count(evil) > 18
    assert f"name: {evil}</code></pre></details>" in page.text


def test_tags_in_figures_are_text_never_markup_or_formulas(run_folder: Path, edit_metrics: Edit) -> None:
    evil = "$x_1$</text><script>bad()</script>"
    for name in ("groups.json", "similarity.csv"):
        path = run_folder / name
        path.write_text(path.read_text(encoding="utf-8").replace("tur_Latn", evil), encoding="utf-8")
    edit_metrics(lambda metrics: metrics["languages"].update({evil: metrics["languages"].pop("tur_Latn")}))
    page = report(run_folder)
    assert page.count("script") == 1
    assert page.text.count(evil) >= 3  # the table and both axes of the heatmap


def test_characters_that_no_page_may_hold_are_replaced(run_folder: Path, edit_metrics: Edit) -> None:
    edit_metrics(lambda metrics: metrics["languages"]["swh_Latn"].update(name="Swa\u0000\ud800hili"))
    assert report(run_folder).row("Swa\ufffd\ufffdhili")[1] == "swh_Latn"


def test_page_is_self_contained(run_folder: Path) -> None:
    html = write_report(run_folder).read_text(encoding="utf-8")
    assert "://" not in html
    assert "@import" not in html
    for tag, attributes in Page(html).elements:
        assert tag not in ("link", "iframe", "object", "base")
        for name in ("src", "href", "srcset"):
            value = attributes.get(name)
            assert value is None or value.startswith(("#", "data:image/png;base64,")), (tag, value)
    assert "default-src 'none'" in html


def test_page_is_accessible(run_folder: Path) -> None:
    page = report(run_folder)
    headers = [attributes for tag, attributes in page.elements if tag == "th"]
    assert all(attributes.get("scope") in ("col", "row") for attributes in headers)
    order = [attributes["aria-sort"] for attributes in headers if "aria-sort" in attributes]
    assert order.count("ascending") == 1
    assert len(order) == page.count("button") == 10
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    figures = [attributes for tag, attributes in page.elements if tag == "svg"]
    assert len(figures) == 3
    assert all(set((figure["aria-labelledby"] or "").split()) <= set(ids) for figure in figures)
    used = [a["href"] for tag, a in page.elements if tag == "use"]
    assert {(href or "")[1:] for href in used} <= set(ids)


def test_events_survive_a_resume_and_a_torn_line(run_folder: Path) -> None:
    page = report(run_folder)
    assert "the language-model loss ends at: dense control 4.071, mixture 3.871." in page.text
    assert "unreadable" not in page.text
    with (run_folder / "events.jsonl").open("a", encoding="utf-8") as file:
        file.write("\n" + json.dumps({"stage": "train", "event": "step", "step": 210, "loss": 3.5}) + "\n")
    page = report(run_folder)
    assert "mixture 3.500." in page.text
    assert "1 unreadable line of events.jsonl was left out." in page.text


def test_dead_experts_are_named(run_folder: Path) -> None:
    text = report(run_folder).text
    assert "A dead expert, without a single token in training:" in text
    assert "expert 5 (group of Ελληνικά, हिन्दी, Українська)." in text


def test_router_tables_show_where_each_language_went(run_folder: Path) -> None:
    page = report(run_folder)
    ukrainian = [[c.strip().replace("\xa0", " ") for c in row] for row in page.rows if row[0].strip() == "Українська"]
    assert ["Українська", "5", "1", "1", "1", "1", "1", "95", "95.0 %"] in ukrainian
    assert ["Українська", "5", "95", "1", "1", "1", "1", "1", "81.0 %"] in ukrainian
    assert ["Українська", "5", "·", "·", "·", "·", "100", "·"] in ukrainian


def test_many_experts_are_summed_up(run_folder: Path, edit_metrics: Edit) -> None:
    def widen(metrics: dict[str, Any]) -> None:
        for language in metrics["languages"].values():
            shares = [0.0] * 64
            shares[language["group"]], shares[40] = 0.7, 0.3
            language["router_share"] = {"prefix": shares, "top_k": shares}

    edit_metrics(widen)
    rows = [[cell.strip().replace("\xa0", " ") for cell in row] for row in report(run_folder).rows]
    assert ["Wolof", "3", "70 %", "40: 30 %", "95.0 %"] in rows


def test_cost_table(run_folder: Path) -> None:
    page = report(run_folder)
    assert page.row("mixture, active per token") == ["mixture, active per token", "590,720", "150\xa0%"]
    assert page.row("dense control") == ["dense control", "921,600", "21,000"]
    assert page.row("evaluate") == ["evaluate", "1 h 02 min"]
    assert page.row("peak memory") == ["peak memory", "912 MB"]


def test_without_dense_control_nothing_is_claimed(run_folder: Path, edit_metrics: Edit) -> None:
    def drop(metrics: dict[str, Any]) -> None:
        del metrics["change_vs_dense"]
        for scores in (metrics["average"], *metrics["languages"].values()):
            for kind in ("perplexity", "perplexity_after_burn_in", "bits_per_byte", "bits_per_byte_after_burn_in"):
                del scores[kind]["dense"]
        for part in ("tokens", "parameters", "seconds", "tokens_per_second"):
            del metrics[part]["dense"]

    edit_metrics(drop)
    page = report(run_folder)
    assert "No dense control was trained" in page.text
    assert "lower than" not in page.text
    assert "vs dense" not in page.text
    assert len(page.row("Українська")) == 7


def test_missing_files_are_said_to_be_missing(run_folder: Path) -> None:
    for name in ("recipe.yaml", "groups.json", "similarity.csv", "layers.csv", "events.jsonl"):
        (run_folder / name).unlink()
    page = report(run_folder)
    assert page.count("svg") == 0
    for name in ("recipe.yaml", "similarity.csv", "layers.csv", "events.jsonl"):
        assert name in page.text
    assert "Tokens per language and expert were not logged" in page.text


def test_values_that_were_not_measured_are_shown_as_such(run_folder: Path, edit_metrics: Edit) -> None:
    def blank(metrics: dict[str, Any]) -> None:
        metrics["peak_memory_mb"] = None
        metrics["languages"]["swh_Latn"]["perplexity_after_burn_in"]["prefix"] = float("nan")
        metrics["languages"]["swh_Latn"]["bits_per_byte"]["top_k"] = None
        metrics["languages"]["swh_Latn"]["router_share"] = {}

    edit_metrics(blank)
    page = report(run_folder)
    assert page.row("Kiswahili")[3] == "n/a"
    assert page.row("Kiswahili")[9] == "n/a"
    assert page.row("peak memory")[1] == "n/a"
    assert "nan" not in re.sub(r"<script>.*</script>", "", page.text.lower())


def test_page_appears_whole_or_not_at_all(run_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = write_report(run_folder).read_bytes()

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_report(run_folder)
    assert (run_folder / "report.html").read_bytes() == before
    assert [path.name for path in run_folder.iterdir() if path.suffix == ".html"] == ["report.html"]


def test_the_same_run_gives_the_same_page(run_folder: Path) -> None:
    assert write_report(run_folder).read_bytes() == write_report(run_folder).read_bytes()
