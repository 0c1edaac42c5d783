"""Checkpoints on disk: what is written is what safetensors reads, and what is damaged is named in one sentence."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from sprachbund.errors import InputError
from sprachbund.modeling.checkpoint import DTYPES, Checkpoint, LazyTensor, fetch, new_folder, write_checkpoint


def lazy(name: str, tensor: Tensor, *, pieces: int = 1) -> LazyTensor:
    return LazyTensor(name, tuple(tensor.shape), tensor.dtype, lambda: tensor.chunk(pieces) if pieces > 1 else [tensor])


def tensors() -> dict[str, Tensor]:
    """Every kind of tensor that a checkpoint may hold; sizes that leave the next tensor unaligned."""
    torch.manual_seed(3)
    return {
        "flags": torch.tensor([True, False, True]),
        "weight": torch.randn(5, 7),
        "half": torch.randn(3, 3, 3).to(torch.bfloat16),
        "transposed": torch.randn(4, 6).T,
        "empty": torch.empty(0, 4),
        "scalar": torch.tensor(2.5),
        "counts": torch.tensor([2**40, -1, 7]),
        "small": torch.randn(5).to(torch.float8_e4m3fn),
        "wide": torch.randn(2, 2, dtype=torch.float64),
    }


def save(folder: Path, shards: dict[str, dict[str, Tensor]], *, index: bool = True) -> Path:
    """Write shards with safetensors' own writer, and their index."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text("{}")
    for name, content in shards.items():
        save_file(content, folder / name)
    if index:
        weight_map = {tensor: name for name, content in shards.items() for tensor in content}
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


ONE, TWO = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


def two_shards(folder: Path) -> Path:
    return save(folder, {ONE: {"a": torch.arange(6.0).view(2, 3)}, TWO: {"b": torch.ones(4)}})


def test_safetensors_reads_what_is_written(tmp_path: Path) -> None:
    expected = tensors()
    write_checkpoint(tmp_path, [lazy(name, tensor) for name, tensor in expected.items()])
    found = load_file(tmp_path / "model.safetensors")
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert found[name].shape == tensor.shape
        assert torch.equal(found[name].double(), tensor.double())
    header = (tmp_path / "model.safetensors").read_bytes()
    length = int.from_bytes(header[:8], "little")
    assert length % 8 == 0
    entries = json.loads(header[8 : 8 + length])
    assert entries.pop("__metadata__") == {"format": "pt"}
    sizes = {"F64": 8, "I64": 8, "F32": 4, "BF16": 2}
    assert all(entry["data_offsets"][0] % sizes.get(entry["dtype"], 1) == 0 for entry in entries.values())


def test_what_is_written_is_read_back_name_by_name(tmp_path: Path) -> None:
    expected = tensors()
    (tmp_path / "config.json").write_text("{}")
    write_checkpoint(tmp_path, [lazy(name, tensor) for name, tensor in expected.items()])
    checkpoint = Checkpoint(tmp_path)
    assert set(checkpoint.names) == set(expected)
    assert "weight" in checkpoint
    assert "bias" not in checkpoint
    for name, tensor in expected.items():
        found = checkpoint.read(name)
        assert (found.dtype, found.shape) == (tensor.dtype, tensor.shape)
        assert (checkpoint.dtype(name), checkpoint.shape(name)) == (tensor.dtype, tuple(tensor.shape))
        assert torch.equal(found.double(), tensor.double())
        assert found.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()


def test_every_data_type_of_torch_and_safetensors_is_known(tmp_path: Path) -> None:
    for code, dtype in DTYPES.items():
        tensor = torch.arange(12, dtype=torch.uint8).repeat_interleave(dtype.itemsize).view(dtype)
        if dtype == torch.bool:
            tensor = torch.ones(12, dtype=torch.bool)
        save_file({"x": tensor}, tmp_path / "model.safetensors")
        (tmp_path / "config.json").write_text("{}")
        found = Checkpoint(tmp_path).read("x")
        assert found.dtype == dtype, code
        assert torch.equal(found.view(torch.uint8), tensor.view(torch.uint8)), code


def test_parts_are_read_alone(tmp_path: Path) -> None:
    weight = torch.randn(3, 4, 5)
    checkpoint = Checkpoint(save(tmp_path, {"model.safetensors": {"w": weight}}, index=False))
    assert torch.equal(checkpoint.read_part("w", 1), weight[1])
    assert torch.equal(checkpoint.read_part("w", 2, slice(1, 3)), weight[2, 1:3])
    assert torch.equal(checkpoint.read_part("w", slice(1, None)), weight[1:])
    assert torch.equal(checkpoint.read_part("w", slice(-1, None)), weight[-1:])
    assert torch.equal(checkpoint.read_part("w", 0, 3, 4), weight[0, 3, 4])
    assert checkpoint.read_part("w", slice(2, 2)).shape == (0, 4, 5)
    with pytest.raises(ValueError, match="one run of bytes"):
        checkpoint.read_part("w", slice(0, 2), 1)
    with pytest.raises(ValueError, match="one run of bytes"):
        checkpoint.read_part("w", slice(0, 3, 2))
    with pytest.raises(IndexError, match="no 3"):
        checkpoint.read_part("w", 3)
    with pytest.raises(KeyError):
        checkpoint.read("v")


def test_large_checkpoints_are_sharded_with_an_index(tmp_path: Path) -> None:
    expected = {f"w{i}": torch.randn(10, 10) for i in range(5)} | {"large": torch.randn(30, 30)}
    write_checkpoint(tmp_path, [lazy(n, t, pieces=3) for n, t in expected.items()], max_shard_bytes=1000)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *(f"model-0000{i}-of-00004.safetensors" for i in (1, 2, 3, 4)),
        "model.safetensors.index.json",
    ]
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"] == {"total_parameters": 1400, "total_size": 5600}
    assert index["weight_map"]["large"] == "model-00004-of-00004.safetensors"
    (tmp_path / "config.json").write_text("{}")
    checkpoint = Checkpoint(tmp_path)
    assert checkpoint.names == list(expected)
    for name, tensor in expected.items():
        assert torch.equal(checkpoint.read(name), tensor)


def test_pieces_must_add_up_to_their_tensor(tmp_path: Path) -> None:
    short = LazyTensor("w", (3, 2), torch.float32, lambda: [torch.ones(2, 2)])
    with pytest.raises(ValueError, match="the pieces of w have 16 bytes, the tensor 24"):
        write_checkpoint(tmp_path, [short])
    other = LazyTensor("w", (3, 2), torch.bfloat16, lambda: [torch.ones(3, 2)])
    with pytest.raises(ValueError, match=r"a piece of w is torch\.float32"):
        write_checkpoint(tmp_path, [other])
    with pytest.raises(ValueError, match="repeated"):
        write_checkpoint(tmp_path, [lazy("w", torch.ones(1)), lazy("w", torch.ones(1))])


# --- what is damaged


def lose_index(folder: Path) -> None:
    (folder / "model.safetensors.index.json").unlink()


def lose_shard(folder: Path) -> None:
    (folder / TWO).unlink()


def lose_tensor(folder: Path) -> None:
    save_file({"c": torch.ones(1)}, folder / TWO)


def truncate(folder: Path) -> None:
    (folder / TWO).write_bytes((folder / TWO).read_bytes()[:-3])


def truncate_header(folder: Path) -> None:
    (folder / TWO).write_bytes((folder / TWO).read_bytes()[:20])


def empty(folder: Path) -> None:
    (folder / TWO).write_bytes(b"")


def lengthen(folder: Path) -> None:
    (folder / TWO).write_bytes((folder / TWO).read_bytes() + b"more")


def text(folder: Path) -> None:
    (folder / TWO).write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22e\n"
    )


def repeat(folder: Path) -> None:
    save_file({"a": torch.ones(1), "b": torch.ones(4)}, folder / TWO)


def header(folder: Path, content: str, data: bytes = b"\0" * 16) -> None:
    raw = content.encode()
    (folder / TWO).write_bytes(len(raw).to_bytes(8, "little") + raw + data)


def repeat_in_one(folder: Path) -> None:
    one = '"b":{"dtype":"F32","shape":[2],"data_offsets":[%d,%d]}'
    header(folder, "{" + one % (0, 8) + "," + one % (8, 16) + "}")


def hole(folder: Path) -> None:
    header(folder, '{"b":{"dtype":"F32","shape":[2],"data_offsets":[8,16]}}')


def lie(folder: Path) -> None:
    header(folder, '{"b":{"dtype":"F32","shape":[3],"data_offsets":[0,16]}}')


def negative(folder: Path) -> None:
    header(folder, '{"b":{"dtype":"F32","shape":[-2,-2],"data_offsets":[0,16]}}')


def strange(folder: Path) -> None:
    header(folder, '{"b":{"dtype":"F4","shape":[32],"data_offsets":[0,16]}}')


def list_index(folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text("[]")


def climb(folder: Path) -> None:
    weight_map = {"a": ONE, "b": "../" + TWO}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda folder: (folder / "config.json").unlink(),
            "{folder} is no model: it has no config.json; give the folder of a saved model",
        ),
        (lose_index, "{folder} has shards but no model.safetensors.index.json"),
        (lose_shard, f"the shard {TWO} is missing in {{folder}}, and the index names it; fetch it as well"),
        (lose_tensor, f"{{folder}}/{TWO} lacks the tensor b, which the index promises; fetch it anew"),
        (truncate, f"{{folder}}/{TWO} is truncated: it has 77 of its 80 bytes; fetch the file anew"),
        (truncate_header, f"{{folder}}/{TWO} is truncated or not safetensors: 20 bytes do not hold its header"),
        (empty, f"{{folder}}/{TWO} is truncated or not safetensors: 0 bytes do not hold its header"),
        (lengthen, f"{{folder}}/{TWO} is not safetensors: it has a tail"),
        (text, f"{{folder}}/{TWO} is truncated or not safetensors: 87 bytes do not hold its header"),
        (repeat, f"the tensor a is twice in {{folder}}, in {ONE} and in {TWO}; keep one of them"),
        (repeat_in_one, f"the tensor b is twice in {{folder}}/{TWO}"),
        (hole, f"{{folder}}/{TWO} is not safetensors: b does not begin where the tensor before ends"),
        (lie, f"{{folder}}/{TWO} is not safetensors: its header cannot be read"),
        (negative, f"{{folder}}/{TWO} is not safetensors: its header cannot be read"),
        (strange, f"{{folder}}/{TWO}: b is of the data type F4, which is not supported; give a checkpoint in"),
        (list_index, "{folder}/model.safetensors.index.json is no index of shards"),
        (climb, f"the shard ../{TWO} is missing in {{folder}}"),
    ],
)
def test_what_is_damaged_is_named_when_it_is_opened(
    damage: Callable[[Path], None], message: str, tmp_path: Path
) -> None:
    folder = two_shards(tmp_path / "base")
    assert Checkpoint(folder).names == ["a", "b"]
    damage(folder)
    with pytest.raises(InputError) as refused:
        Checkpoint(folder)
    assert str(refused.value).startswith(message.format(folder=folder))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.gguf"])
def test_weights_in_another_format_are_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InputError, match=r"has no weights: neither model\.safetensors nor model\.safetensors\.index"):
        Checkpoint(tmp_path)
    (tmp_path / name).write_bytes(b"weights")
    with pytest.raises(InputError, match=rf"are not safetensors \(found {name}\); convert it with .*save_pretrained"):
        Checkpoint(tmp_path)


def test_a_file_that_shrinks_meanwhile_is_noticed(tmp_path: Path) -> None:
    folder = two_shards(tmp_path)
    checkpoint = Checkpoint(folder)
    truncate(folder)
    with pytest.raises(InputError, match="has become shorter"):
        checkpoint.read("b")


# --- folders


def test_a_folder_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "er" / "out"
    with new_folder(out) as folder:
        (folder / "file").write_text("whole")
        assert not out.exists()
        assert folder.parent == out.parent
    assert (out / "file").read_text() == "whole"
    assert [path.name for path in out.parent.iterdir()] == ["out"]
    assert out.stat().st_mode & 0o777 == out.parent.stat().st_mode & 0o777

    def fail(error: BaseException) -> None:
        with new_folder(tmp_path / "other" / "out") as folder:
            (folder / "file").write_text("half")
            raise error

    for error in (InputError("no"), KeyboardInterrupt()):
        with pytest.raises(type(error)):
            fail(error)
        assert [path.name for path in tmp_path.iterdir()] == ["deep"]


def test_a_folder_that_exists_is_left_alone(tmp_path: Path) -> None:
    for taken in ("folder", "file", "link"):
        (tmp_path / "folder").mkdir(exist_ok=True)
        (tmp_path / "file").write_text("mine")
        if taken == "link":
            (tmp_path / "link").symlink_to(tmp_path / "nowhere")
        with (
            pytest.raises(InputError, match=f"{taken} exists already; give another --out"),
            new_folder(tmp_path / taken),
        ):
            pass
    with pytest.raises(InputError, match="cannot be made, since a file is in its place"):
        new_folder(tmp_path / "file" / "out").__enter__()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder", "link"]


def test_one_that_comes_to_exist_meanwhile_is_left_alone(tmp_path: Path) -> None:
    making = new_folder(tmp_path / "out")
    (making.__enter__() / "mine").touch()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "theirs").touch()
    with pytest.raises(InputError, match="out has come to exist meanwhile; give another --out"):
        making.__exit__(None, None, None)
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "theirs"]


def test_a_local_model_is_used_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert fetch(str(tmp_path)) == tmp_path
    monkeypatch.setenv("HOME", str(tmp_path))
    assert fetch("~") == tmp_path
    for missing in (f"{tmp_path}/none", "./none", "a/b/c"):
        with pytest.raises(InputError, match="is no folder; give the folder of a model, or its id on the Hub"):
            fetch(missing)


def test_what_cannot_be_fetched_is_said_in_one_sentence() -> None:
    for base in ("nobody/nothing", "bad name!"):  # no test may reach the network
        with pytest.raises(InputError) as refused:
            fetch(base, revision="v2")
        assert str(refused.value).startswith(f"the model {base!r} (revision v2) is no folder and cannot be fetched (")
        assert str(refused.value).endswith("); give a folder, or a Hub id that you have access to")
        assert "\n" not in str(refused.value)


def test_only_weights_and_tokenizers_are_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {}

    def snapshot_download(repo_id: str, **wishes: object) -> str:
        asked.update(wishes, repo_id=repo_id)
        return str(tmp_path)

    import huggingface_hub
    from huggingface_hub.utils import filter_repo_objects

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert fetch("some/model", revision="v2") == tmp_path
    assert (asked["repo_id"], asked["revision"]) == ("some/model", "v2")
    wanted = [
        "config.json",
        ONE,
        "model.safetensors.index.json",
        "tokenizer.model",
        "merges.txt",
        "chat_template.jinja",
    ]
    others = ["pytorch_model.bin", "modeling.py", "original/model.safetensors", "consolidated.safetensors", "x.gguf"]
    found = filter_repo_objects(
        [*wanted, *others], allow_patterns=asked["allow_patterns"], ignore_patterns=asked["ignore_patterns"]
    )
    assert list(found) == wanted


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs the peak of resident memory of Linux")
def test_reading_keeps_only_the_tensor_asked_for(tmp_path: Path) -> None:
    """A file of 120 MB, read tensor by tensor: resident memory grows by one tensor of 4 MB, and writing alike."""
    script = """
import re, sys, torch
from pathlib import Path
from sprachbund.modeling.checkpoint import Checkpoint, LazyTensor, write_checkpoint
folder = Path(sys.argv[1])
(folder / "config.json").write_text("{}")
def make(i): return lambda: [torch.full((1 << 20,), float(i))]
def peak(): return int(re.search(r"VmHWM:\\s*(\\d+) kB", Path("/proc/self/status").read_text())[1])
before = peak()
write_checkpoint(folder, [LazyTensor(f"w{i}", (1 << 20,), torch.float32, make(i)) for i in range(30)])
checkpoint = Checkpoint(folder)
sums = [float(checkpoint.read(name)[-1]) for name in checkpoint.names]
assert sums == list(map(float, range(30)))
print((peak() - before) / 1024)
"""
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=True)
    assert (tmp_path / "model.safetensors").stat().st_size > 120e6
    assert float(done.stdout) < 24
