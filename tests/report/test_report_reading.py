"""A malformed run directory is a named error: the file, what was found, what to do."""

import json
from pathlib import Path

import pytest

from sprachbund.errors import InputError
from sprachbund.report.reading import read_run


def test_unfinished_run(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"there is no metrics\.json"):
        read_run(tmp_path)


def test_other_schema(run_folder: Path) -> None:
    (run_folder / "metrics.json").write_text('{"schema": 2}')
    with pytest.raises(InputError, match="found schema 2, and this version reads schema 1"):
        read_run(run_folder)


def test_torn_metrics(run_folder: Path) -> None:
    (run_folder / "metrics.json").write_text('{"schema": 1, "langu')
    with pytest.raises(InputError, match="not JSON"):
        read_run(run_folder)


def test_wrong_field_is_named_by_its_path(run_folder: Path) -> None:
    metrics = json.loads((run_folder / "metrics.json").read_text(encoding="utf-8"))
    metrics["languages"]["wol_Latn"]["group"] = "three"
    (run_folder / "metrics.json").write_text(json.dumps(metrics))
    with pytest.raises(InputError, match=r"at languages\.wol_Latn\.group"):
        read_run(run_folder)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("groups.json", '{"wol_Latn": null}', "the group of 'wol_Latn' is null"),
        ("similarity.csv", "language,wol_Latn,zul_Latn\nzul_Latn,1,0\nwol_Latn,0,1\n", "line 2"),
        ("similarity.csv", "language,wol_Latn,zul_Latn\nwol_Latn,1,high\nzul_Latn,0,1\n", "line 2"),
        ("similarity.csv", "language,wol_Latn,xyz_Latn\nwol_Latn,1,0\nxyz_Latn,0,1\n", "'xyz_Latn' is in no group"),
        ("layers.csv", "layer,ffn_norm\n0,0.3\n", r"layers\.csv:2"),
        ("layers.csv", "layer,ffn_norm,attention_norm,normalised,chosen\n0,much,1,1,1\n", r"layers\.csv:2"),
    ],
)
def test_malformed_file_is_named(run_folder: Path, name: str, content: str, message: str) -> None:
    (run_folder / name).write_text(content)
    with pytest.raises(InputError, match=message) as caught:
        read_run(run_folder)
    assert name in str(caught.value)


def test_attention_norms_may_be_missing(run_folder: Path) -> None:
    (run_folder / "layers.csv").write_text("layer,ffn_norm,attention_norm,normalised,chosen\n0,0.3,,,1\n")
    layers = read_run(run_folder).layers
    assert layers is not None
    assert layers[0].chosen
    assert layers[0].attention_norm != layers[0].attention_norm


def test_a_resumed_stage_replaces_the_steps_it_repeats(run_folder: Path) -> None:
    lines = [(10, 5.0), (20, 4.0), (30, 3.0), (20, 4.5)]
    (run_folder / "events.jsonl").write_text(
        "".join(json.dumps({"stage": "dense", "event": "step", "step": s, "loss": x}) + "\n" for s, x in lines)
    )
    events = read_run(run_folder).events
    assert events is not None
    assert [(step.step, step.language_model_loss) for step in events.steps["dense"]] == [(10, 5.0), (20, 4.5)]


def test_only_the_last_token_counts_are_kept(run_folder: Path) -> None:
    events = read_run(run_folder).events
    assert events is not None
    assert events.tokens["acu_Latn"] == [120, 0, 0, 0, 0, 0]


def test_experts_may_be_missing_from_the_layers(run_folder: Path) -> None:
    layers = read_run(run_folder).layers
    assert layers is not None
    assert {layer.experts for layer in layers} == {None}


def test_malformed_number_of_experts_is_named(planned_folder: Path) -> None:
    path = planned_folder / "layers.csv"
    path.write_text(path.read_text().replace("0.7,1,2", "0.7,1,two"))
    with pytest.raises(InputError, match=r"layers\.csv:5"):
        read_run(planned_folder)


def test_grouping_file_is_read_in_parts(planned_folder: Path) -> None:
    run = read_run(planned_folder)
    assert run.grouping.problems == []
    assert run.grouping.how is not None
    assert (run.grouping.how.source, run.grouping.how.bound) == ("deviation", 0.5087)
    assert [row.count for row in run.grouping.curve if row.chosen] == [6]
    # Columns that hold no number at all are not columns of the curve.
    assert list(run.grouping.curve[0].values) == ["mean", "min", "held_out", "gap"]
    assert list(run.grouping.sources) == ["deviation", "lexical"]
    assert sorted(run.others.matrices) == ["gradient", "lexical"]


def test_similarity_by_layer_is_averaged_within_and_between_groups(planned_folder: Path) -> None:
    others = read_run(planned_folder).others
    assert others.within == pytest.approx({0: 0.1, 1: 0.2, 2: 0.3, 3: 0.4})
    assert others.between == pytest.approx(dict.fromkeys(range(4), 0.05))


def test_only_the_source_in_use_is_read_by_layer(planned_folder: Path) -> None:
    path = planned_folder / "similarity" / "deviation-by-layer.csv"
    path.rename(path.with_name("gradient-by-layer.csv"))
    others = read_run(planned_folder).others
    assert (others.within, others.between, others.problems) == ({}, {}, [])


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("", "not JSON"),
        ("[1]", "no JSON object"),
        ("[" * 100_000, "not JSON"),
        ('{"mean": "high"}', "mean: input should be a valid number"),
        ('{"stability": {"confidence": {"wol_Latn": 1.5}}}', "stability.confidence.wol_Latn: input should be less"),
        ('{"stability": {"tags": ["wol_Latn"], "co_assignment": [[1, 0]]}}', "stability.co_assignment: it must have"),
        ('{"families": {"rand": []}}', "families.rand: input should be a valid number"),
        ('{"families": 3}', "families: input should be"),
        ('{"sources": ["deviation"]}', "sources: it must be an object"),
        ('{"sources": {"gradient": {"mean": true}}}', "sources.gradient.mean: input should be a valid number"),
        ('{"curve": [{"mean": 1}]}', "curve.0: a row must have a whole number `count`"),
        ('{"curve": {"count": "2"}}', "curve.0: a row must have a whole number `count`"),
    ],
)
def test_malformed_part_of_the_grouping_is_left_out_and_named(run_folder: Path, content: str, problem: str) -> None:
    (run_folder / "grouping.json").write_text(content)
    problems = read_run(run_folder).grouping.problems
    assert len(problems) == 1
    assert problems[0].startswith(problem)


def test_numbers_that_are_none_are_not_measured(run_folder: Path) -> None:
    (run_folder / "grouping.json").write_text(
        '{"mean": NaN, "min": -Infinity, "curve": [{"count": 2, "mean": NaN, "gap": 1' + "0" * 400 + "}]}"
    )
    grouping = read_run(run_folder).grouping
    assert grouping.how is not None
    assert (grouping.how.mean, grouping.how.min) == (None, None)
    assert grouping.curve[0].values.get("mean") is None
    assert grouping.curve[0].values.get("gap") is None
    assert grouping.problems == []


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("lexical.csv", "language,a,b\na,1,x\nb,0,1\n", "similarity/lexical.csv, line 2: found 'x'"),
        ("lexical.csv", "language,wol_Latn,zul_Latn\nwol_Latn,1,0\nzul_Latn,0,1\n", "'acu_Latn' is in this matrix or"),
        ("deviation-by-layer.csv", "layer,a,b\n0,wol_Latn,zul_Latn\n", "similarity/deviation-by-layer.csv:2"),
        ("deviation-by-layer.csv", "layer,a,b,similarity\n0,wol_Latn,nan_Latn,0.1\n", "KeyError: 'nan_Latn'"),
        ("deviation-by-layer.csv", "layer,a,b,similarity\n0,wol_Latn,zul_Latn,nan\n", "nan is no similarity"),
    ],
)
def test_malformed_other_similarity_is_left_out_and_named(
    planned_folder: Path, name: str, content: str, problem: str
) -> None:
    (planned_folder / "similarity" / name).write_text(content)
    (found,) = read_run(planned_folder).others.problems
    assert problem in found
    assert str(planned_folder) not in found
