"""The plan of a run: sources of similarity, how sure the groups are, layers with experts of their own number."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from command_line import CommandLine, Said

from sprachbund.grouping.similarity_csv import read_similarity

PROBED = "deviation,gradient,representation,lexical,characters"
TAGS = ("ron_Latn", "ita_Latn", "rus_Cyrl", "ukr_Cyrl")


@pytest.fixture
def ask(tiny: Path, cli: CommandLine) -> Any:
    """Return a function that runs a verb on the tiny recipe with values changed."""

    def run(verb: str, *sets: str, options: tuple[object, ...] = ()) -> Said:
        changes = [part for change in sets for part in ("--set", change)]
        return cli(verb, tiny, "--out", tiny.parent / "run", *changes, *options)

    return run


def facts(tiny: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((tiny.parent / "run/grouping.json").read_text())
    return content


def test_one_probe_gives_every_similarity(ask: Any, tiny: Path) -> None:
    said = ask("probe", options=("--sources", PROBED))
    assert said.status == 0, said.err
    names = [*PROBED.split(","), "gradient-stepwise"]
    assert [line.split(":")[0] for line in said.out.splitlines()] == names
    for name in names:
        similarity = read_similarity(tiny.parent / f"run/similarity/{name}.csv")
        assert similarity.tags == TAGS
        assert (similarity.values_LL.diagonal() == 1).all()
        # the two alphabets share next to no token, gradient or state
        assert similarity.values_LL[0, 1] > similarity.values_LL[0, 2]
    assert (tiny.parent / "run/similarity.csv").read_text() == (
        tiny.parent / "run/similarity/deviation.csv"
    ).read_text()
    with (tiny.parent / "run/similarity/gradient-by-layer.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["layer"] for row in rows} == {"0", "1"}
    assert len(rows) == 2 * 6


def test_one_step_of_plain_descent_is_the_gradient(ask: Any, tiny: Path) -> None:
    sets = ("probe.steps=1", "probe.optimizer=sgd", "probe.center=false", "probe.sketch_size=65536")
    assert ask("probe", *sets, options=("--sources", "deviation,gradient")).status == 0
    deviation, gradient = (read_similarity(tiny.parent / f"run/similarity/{n}.csv") for n in ("deviation", "gradient"))
    assert deviation.values_LL == pytest.approx(gradient.values_LL, abs=1e-4)


def test_a_run_says_how_its_groups_were_made(ask: Any, tiny: Path) -> None:
    sets = ["probe.repeats=2", "groups.resamples=20", "probe.sources=[lexical]"]
    for tag, family in zip(TAGS, ("Romance", "Romance", "Slavic", "Slavic"), strict=True):
        sets.append(f"languages.{tag}={{file: corpora/{tag[:3]}.jsonl, family: {family}}}")
    said = ask("group", *sets)
    assert said.status == 0, said.err
    found = facts(tiny)
    assert (found["source"], found["objective"], found["proven"]) == ("deviation", "mean", True)
    assert found["stability"]["resamples"] == 20
    assert found["stability"]["kind"] == "bootstrap of the probe's steps"
    assert set(found["stability"]["confidence"]) == set(TAGS)
    assert -1 <= found["between_repeats"] <= 1
    assert found["families"]["families"]["ron_Latn"] == "Romance"
    assert set(found["sources"]) == {"deviation", "lexical"}
    assert found["sources"]["deviation"]["rand_to_used"] == 1
    assert "between repeats of the probe: adjusted Rand index" in said.out
    assert (tiny.parent / "run/similarity.svg").read_text(encoding="utf-8").lstrip().startswith("<")


def test_groups_by_tokens_need_no_base(ask: Any, tiny: Path) -> None:
    said = ask("probe", "groups.source=lexical")
    assert said.status == 0, said.err
    assert not (tiny.parent / "run/base").exists()
    assert json.loads((tiny.parent / "run/probe/probe.json").read_text()) == {}
    groups = ask("group", "groups.source=lexical", options=("--json",))
    assert json.loads(groups.out)["groups"] == [["ita_Latn", "ron_Latn"], ["rus_Cyrl", "ukr_Cyrl"]]


def test_groups_by_a_table_of_families(ask: Any, tiny: Path) -> None:
    (tiny.parent / "f.csv").write_text("language,family\nro,A\nru,A\nit,B\nuk,B\n")
    said = ask("group", "groups.source=family", "groups.families=f.csv", options=("--json",))
    assert said.status == 0, said.err
    assert json.loads(said.out)["groups"] == [["ita_Latn", "ukr_Cyrl"], ["ron_Latn", "rus_Cyrl"]]
    assert facts(tiny)["families"]["rand"] == 1
    assert not (tiny.parent / "run/probe").exists()


def test_groups_by_a_given_matrix_in_any_order_and_notation(ask: Any, tiny: Path) -> None:
    (tiny.parent / "s.csv").write_text("x,uk,it,ro,ru\nuk,1,.9,0,.1\nit,.9,1,.2,0\nro,0,.2,1,.8\nru,.1,0,.8,1\n")
    said = ask("group", "groups.source=given", "groups.similarity=s.csv", options=("--json",))
    assert said.status == 0, said.err
    assert json.loads(said.out)["groups"] == [["ita_Latn", "ukr_Cyrl"], ["ron_Latn", "rus_Cyrl"]]
    assert read_similarity(tiny.parent / "run/similarity.csv").tags == TAGS


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        ("x,uk,it,ro\nuk,1,.9,0\nit,.9,1,.2\nro,0,.2,1\n", "s.csv, line 1: no column for rus_Cyrl; give every"),
        (
            "x,uk,it,ro,de\nuk,1,.9,0,.1\nit,.9,1,.2,0\nro,0,.2,1,.8\nde,.1,0,.8,1\n",
            "line 1: the recipe has no language",
        ),
    ],
)
def test_a_given_matrix_of_other_languages(matrix: str, message: str, ask: Any, tiny: Path) -> None:
    (tiny.parent / "s.csv").write_text(matrix)
    said = ask("group", "groups.source=given", "groups.similarity=s.csv")
    assert said.status == 2
    assert message in said.err
    assert said.err.splitlines()[-1].startswith("sprachbund: ")


def test_random_groups_are_those_of_the_seed(ask: Any) -> None:
    first = ask("group", "groups.source=random", options=("--json",))
    assert first.status == 0, first.err
    assert json.loads(first.out)["source"] == "random"


def test_auto_chooses_a_number_and_trains_with_it(ask: Any, tiny: Path) -> None:
    said = ask("group", "groups.count=auto", "groups.resamples=5", options=("--json",))
    assert said.status == 0, said.err
    found = json.loads(said.out)
    assert found["count_chosen"] == "auto"
    assert [row["count"] for row in found["curve"]] == [2]
    assert len(found["groups"]) == 2


def test_links_and_bytes_reach_the_solver(ask: Any) -> None:
    sets = ("groups.must_link=[[ron, rus]]", "groups.weights=bytes", "groups.window=0.9", "groups.resamples=0")
    said = ask("group", *sets, options=("--json",))
    assert said.status == 0, said.err
    assert json.loads(said.out)["groups"] == [["ita_Latn", "ukr_Cyrl"], ["ron_Latn", "rus_Cyrl"]]


def test_a_budget_buys_layers(ask: Any, tiny: Path) -> None:
    one_layer = 2 * (3 * 16 * 32 + 16)
    said = ask("layers", f"layers={{budget: {2 * one_layer - 1}}}", options=("--json",))
    assert said.status == 0, said.err
    assert len(json.loads(said.out)["layers"]) == 1
    assert (tiny.parent / "run/layers.svg").exists()
    said = ask("layers", f"layers={{budget: {one_layer - 1}}}", options=("--update",))
    assert said.status == 2
    assert f"costs {one_layer:,}" in said.err


def test_layers_with_experts_of_their_own_number_are_trained_and_reported(ask: Any, tiny: Path) -> None:
    sets = ("layers={layerwise: 4}", "groups={count: 3, resamples: 0}")
    said = ask("run", *sets)
    assert said.status == 0, said.err
    config = json.loads((tiny.parent / "run/model/config.json").read_text())
    numbers = {int(layer): len(set(table)) for layer, table in config["expert_of_group"].items()}
    assert sum(numbers.values()) == 4
    assert sorted(numbers) == config["moe_layers"]
    listed = ask("layers", *sets).out.splitlines()
    assert listed == [
        f"layer {layer}: {numbers[int(layer)]} experts, by group {' '.join(map(str, table))}"
        for layer, table in config["expert_of_group"].items()
    ]
    assert (tiny.parent / "run/report.html").exists()


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        (("layers={layerwise: 5}",), "layers.layerwise = 5 experts in all; 2 groups in 2 layers can have 2 to 4"),
        (("groups.count=3", "groups.strict=true"), "3 groups do not divide 4 languages"),
        (("groups.must_link=[[ron, ita, rus]]",), "The must-links put 3 languages into one group"),
        (("groups.families=none.csv",), "none.csv: cannot be read"),
        (("probe.sources=[representation]", "probe.sentences=s/{tag}.txt"), "ron_Latn.txt"),
    ],
)
def test_plans_that_cannot_be_are_one_sentence(sets: tuple[str, ...], message: str, ask: Any) -> None:
    said = ask("group", *sets)
    assert said.status == 2
    assert message in said.err
    assert said.err.splitlines()[-1].startswith("sprachbund: ")
    assert "Traceback" not in said.err


def test_nothing_to_probe_is_said(ask: Any, tiny: Path) -> None:
    (tiny.parent / "g.json").write_text(json.dumps(dict.fromkeys(TAGS[:2], 0) | dict.fromkeys(TAGS[2:], 1)))
    said = ask("probe", "groups={given: g.json}")
    assert said.status == 2
    assert "nothing to probe" in said.err
