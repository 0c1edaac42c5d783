"""What `group` and `layers` say of bare files, word for word."""

import json
from pathlib import Path
from typing import Any

import pytest

from sprachbund.cli.bare import group_file, layers_file, read_weights
from sprachbund.errors import InputError

SIMILARITY = """language,de,ru,nl,uk,ka
de,1,.1,.5,0,.05
ru,.1,1,.1,.75,.05
nl,.5,.1,1,0,.05
uk,0,.75,0,1,.05
ka,.05,.05,.05,.05,1
"""

GREEDY = """\
group  size    mean     min  languages
    0     2  0.7500  0.7500  ru uk
    1     2  0.5000  0.5000  de nl
    2     1       -       -  ka
  all     5  0.6250  0.5000  (greedy-seeded)"""

MEAN = """\
group  size    mean     min  languages
    0     2  0.5000  0.5000  de nl
    1     1       -       -  ka
    2     2  0.7500  0.7500  ru uk
  all     5  0.6250  0.5000  (mean, exact, no pair below 0.3500, proven optimal)
families: adjusted Rand index 1.00, p = {p:.4f}"""

LAYERS = """\
layer        norm  normalised  experts
    0         0.5       0.000       no
    1       0.875       0.750      yes
    2           1       1.000      yes
2 of 3 layers have experts at {rule}; bitmask 6"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "similarity.csv"
    path.write_text(SIMILARITY)
    return path


def grouped(path: Path, *, as_json: bool = False, show_front: bool = False, **wishes: Any) -> str:
    return group_file(path, wishes, show_front=show_front, svg=None, seed=0, as_json=as_json)


def norms_file(path: Path, *rows: list[float]) -> Path:
    path.write_text(json.dumps({f"l{i}": {"delta_norm_ffn": row} for i, row in enumerate(rows)}))
    return path


def layered(path: Path, *, as_json: bool = False, cost: int | None = None, **wish: Any) -> str:
    return layers_file(path, wish, cost=cost, svg=None, as_json=as_json)


# --- groups


def test_the_papers_groups_as_a_table(path: Path) -> None:
    assert grouped(path, count=3, objective="greedy", method="greedy-seeded", resamples=0) == GREEDY


def test_groups_say_how_they_were_found_and_whom_they_follow(path: Path) -> None:
    table = path.parent / "families.csv"
    table.write_text("language,family\nde,A\nnl,A\nru,B\nuk,B\nka,C\n")
    said = json.loads(grouped(path, count=3, families=str(table), resamples=0, as_json=True))
    assert said["families"]["rand"] == 1.0
    text = grouped(path, count=3, families=str(table), resamples=0)
    assert text == MEAN.format(p=said["families"]["p_value"])


def test_groups_as_json(path: Path) -> None:
    said = json.loads(grouped(path, count=3, as_json=True))
    assert said["groups"] == [["de", "nl"], ["ka"], ["ru", "uk"]]
    assert said["sizes"] == [2, 1, 2]
    assert said["source"] == "given"
    assert (said["objective"], said["method"], said["proven"]) == ("mean", "exact", True)
    assert (said["mean"], said["min"], said["value"]) == (0.625, 0.5, 0.625)
    assert said["bound"] == pytest.approx(0.625)
    assert said["least"] == pytest.approx(0.35)


def test_groups_of_one_have_no_similarity(path: Path) -> None:
    said = json.loads(grouped(path, count=5, resamples=0, as_json=True))
    assert (said["mean"], said["min"]) == (None, None)


def test_leaving_out_languages_tells_how_sure_the_groups_are(path: Path) -> None:
    said = json.loads(grouped(path, count=3, as_json=True))
    assert said["stability"]["kind"] == "leaving out a fifth of the languages"
    assert said["stability"]["confidence"]["ru"] == said["stability"]["confidence"]["uk"] > 0.9
    assert "stability: adjusted Rand index" in grouped(path, count=3)
    assert "stability" not in grouped(path, count=3, resamples=0)


def test_auto_prints_the_curve_that_it_chose_from(path: Path) -> None:
    said = json.loads(grouped(path, count="auto", as_json=True))
    assert [row["count"] for row in said["curve"]] == [2]
    text = grouped(path, count="auto")
    assert "  groups        mean" in text
    assert text.count("\n>") == 1


def test_the_trade_off_between_minimum_and_mean(path: Path) -> None:
    said = json.loads(grouped(path, count=2, show_front=True, as_json=True))["front"]
    assert all(point["proven"] for point in said)
    assert [p["min"] for p in said] == sorted(p["min"] for p in said)
    text = grouped(path, count=2, show_front=True)
    assert text.splitlines()[-1] == "proven: no grouping is better in both"
    assert len(text.splitlines()) == len(said) + 2


def test_a_picture_is_written(path: Path) -> None:
    svg = path.parent / "out" / "groups.svg"
    group_file(path, {"count": 3}, show_front=False, svg=svg, seed=0, as_json=False)
    assert svg.read_text(encoding="utf-8").startswith(("<?xml", "<svg"))


@pytest.mark.parametrize(
    ("wishes", "message"),
    [
        ({}, "--groups is missing: give the number of groups, for example --groups 6, or --groups auto"),
        ({"count": 6}, "6 groups asked for 5 languages"),
        ({"count": 1}, "1 group asked for 5 languages; ask for 2 to 5"),
        ({"count": 2, "objective": "best"}, "--objective: found 'best'; "),
        ({"count": 2, "floor": 2.0}, "--floor: found 2.0; "),
        ({"count": 2, "method": "greedy-seeded", "objective": "mean"}, "method = greedy-seeded belongs to objective"),
        ({"count": 2, "strict": True}, "2 groups do not divide 5 languages"),
        ({"count": 2, "weights": "bytes"}, "--weights bytes: a CSV knows no corpora; give a JSON file"),
        ({"count": 2, "must_link": [["de", "fr"]]}, "must-link names the unknown language 'fr'"),
        ({"count": 2, "must_link": [["de", "ru"]], "cannot_link": [["ru", "de"]]}, "'de' and 'ru' must share a group"),
        ({"count": 2, "weights": {"de": 1.0}}, "There is no weight for 'ka', 'nl', 'ru', 'uk'"),
    ],
)
def test_wishes_that_cannot_be_are_one_sentence(wishes: dict[str, Any], message: str, path: Path) -> None:
    with pytest.raises(InputError) as error:
        grouped(path, **wishes)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_front_needs_a_number(path: Path) -> None:
    with pytest.raises(InputError, match="--groups a number, not auto"):
        grouped(path, count="auto", show_front=True)


def test_weights_come_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "w.json").write_text('{"de": 2, "nl": 1}')
    assert read_weights(str(tmp_path / "w.json")) == {"de": 2, "nl": 1}
    assert (read_weights("bytes"), read_weights(None)) == ("bytes", None)
    with pytest.raises(InputError, match="cannot be read"):
        read_weights(str(tmp_path / "none.json"))


# --- layers


def test_layers_as_a_table(tmp_path: Path) -> None:
    path = norms_file(tmp_path / "norms.json", [0.25, 0.75, 1.0], [0.75, 1.0, 1.0])
    assert layered(path, epsilon=0.6) == LAYERS.format(rule="epsilon 0.6")
    assert layered(path, top=2) == LAYERS.format(rule="top 2")
    assert layered(path, budget=25, cost=12) == LAYERS.format(rule="budget 25")


def test_layers_as_json(tmp_path: Path) -> None:
    path = norms_file(tmp_path / "norms.json", [0.5, 0.875, 1.0])
    assert json.loads(layered(path, epsilon=0.6, as_json=True)) == {
        "layers": [1, 2],
        "bitmask": 6,
        "epsilon": 0.6,
        "norms": [0.5, 0.875, 1.0],
        "normalised": [0.0, 0.75, 1.0],
        "warnings": [],
    }


def test_noise_is_said_in_both_forms(tmp_path: Path) -> None:
    path = norms_file(tmp_path / "norms.json", [1.0, 1.01])
    warning = (
        "The norms of the layers differ by 1.0% of their mean only (below 5%): "
        "epsilon reads noise here, so give experts to all layers or choose the number of layers."
    )
    assert layered(path, epsilon=0.6).splitlines()[-1] == f"warning: {warning}"
    assert json.loads(layered(path, epsilon=0.6, as_json=True))["warnings"] == [warning]


def test_a_picture_of_the_layers_is_written(tmp_path: Path) -> None:
    path = norms_file(tmp_path / "norms.json", [0.5, 0.875, 1.0])
    layers_file(path, {"top": 1}, cost=None, svg=tmp_path / "out/l.svg", as_json=False)
    assert "FFN, chosen" in (tmp_path / "out/l.svg").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("wish", "message"),
    [
        ({}, "--epsilon is missing"),
        ({"layerwise": 6}, "--layerwise compares languages layer by layer"),
        ({"budget": 10}, "--budget and --cost belong together"),
        ({"top": 2, "cost": 3}, "--budget and --cost belong together"),
        ({"top": 9}, "9 layers asked for, the model has 3"),
    ],
)
def test_layer_wishes_that_cannot_be(wish: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = norms_file(tmp_path / "norms.json", [0.5, 0.875, 1.0])
    with pytest.raises(InputError, match=message):
        layered(path, **wish)


def test_a_file_that_is_no_norms_reaches_the_caller(path: Path) -> None:
    with pytest.raises(InputError, match=r"line 1: not valid JSON"):
        layered(path, epsilon=0.6)
