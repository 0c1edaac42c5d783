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
