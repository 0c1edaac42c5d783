"""The probe on a real Ray of this machine: the same bits as without, whoever dies on the way, and nothing left."""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from command_line import CommandLine, Said
from safetensors import safe_open
from safetensors.torch import load_file

from sprachbund.errors import InputError, SprachbundError
from sprachbund.run import ray_cluster, ray_probe
from sprachbund.run.probing import DenseBase
from sprachbund.run.ray_cluster import num_places

ray = pytest.importorskip("ray", reason="the extra `ray` is not installed")

TEXT = ("--sources", "lexical", "--set", "groups.source=lexical")  # what needs no model, nor torch in a worker
ALL = "deviation,gradient,representation,lexical,characters"
TAGS = ["ron_Latn", "ita_Latn", "rus_Cyrl", "ukr_Cyrl"]

# The command line on a Ray of its own, whose workers never come back from any language but one.
SLOW = """
import sys, time
from pathlib import Path
from sprachbund.run import ray_probe

def slow(folder):
    class Slow:
        def __init__(self, *_, **__): pass
        def ready(self, *_, **__): pass
        def measure(self, tag, *_):
            while tag != "ron_Latn":
                time.sleep(0.1)
            return (folder / f"probe/{tag}.safetensors").read_bytes()
    return Slow

ray_probe.Worker = slow(Path(sys.argv.pop(1)))
from sprachbund.cli import main
main()
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """A Ray of two CPUs, to which the command line in this process is connected."""
    with ray_cluster._own_cluster() as settings:
        before = signal.getsignal(signal.SIGTERM)
        ray_cluster._connect(ray, "local", {"num_cpus": 2, "num_gpus": 0, **settings})
        try:
            yield
        finally:
            ray.shutdown()
            signal.signal(signal.SIGTERM, before)


@pytest.fixture(scope="module")
def local(shared_tiny: Path, tmp_path_factory: pytest.TempPathFactory, cli: CommandLine) -> Path:
    """The run whose languages were probed by the local engine."""
    folder = tmp_path_factory.mktemp("local") / "run"
    said = cli("probe", shared_tiny, "--out", folder, "--sources", ALL)
    assert said.status == 0, said.err
    return folder


@pytest.fixture(scope="module")
def local_text(shared_tiny: Path, tmp_path_factory: pytest.TempPathFactory, cli: CommandLine) -> Path:
    """The same of the text alone."""
    folder = tmp_path_factory.mktemp("local_text") / "run"
    assert cli("probe", shared_tiny, "--out", folder, *TEXT).status == 0
    return folder


def stand_in(results: Path, dies_at: Path) -> type:
    """Return a worker that knows every result, and dies where a file says so; it starts in no time."""

    class StandIn:
        def __init__(self, *_: Any, **__: Any) -> None:
            pass

        def ready(self, *_: Any, **__: Any) -> None:
            pass

        def measure(self, tag: str, *_: Any) -> bytes:
            if dies_at.read_text() == tag:
                os.kill(os.getpid(), signal.SIGKILL)
            return (results / f"probe/{tag}.safetensors").read_bytes()

    return StandIn


def mortal(folder: Path) -> type:
    """Return a worker that kills itself after a step of a language's fine-tuning, as often as a file of its name says.

    Defined in here, so that it travels to other processes whole.
    """

    class Mortal(ray_probe.Worker):
        def measure(self, tag: str, *rest: Any) -> bytes:
            from sprachbund.similarity import deviation

            step, lives = deviation._step, folder / tag

            def last_step(*arguments: Any) -> None:
                step(*arguments)
                if lives.exists() and (left := int(lives.read_text())):
                    lives.write_text(str(left - 1))
                    os.kill(os.getpid(), signal.SIGKILL)

            deviation._step = last_step
            try:
                return super().measure(tag, *rest)
            finally:
                deviation._step = step

    return Mortal


def files_of(run: Path) -> dict[str, int]:
    return {path.stem: path.stat().st_mtime_ns for path in (run / "probe").glob("*.safetensors")}


def assert_same(run: Path, expected: Path) -> None:
    assert sorted(files_of(run)) == sorted(TAGS)
    for tag in TAGS:
        ours, theirs = run / f"probe/{tag}.safetensors", expected / f"probe/{tag}.safetensors"
        found, wanted = load_file(ours), load_file(theirs)
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[key], wanted[key]) for key in wanted)
        with safe_open(ours, "pt") as file, safe_open(theirs, "pt") as other:
            assert file.metadata() == other.metadata()
    matrices = sorted(path.name for path in (expected / "similarity").glob("*.csv"))
    assert len(matrices) > len(ALL.split(","))
    for name in matrices:
        assert (run / "similarity" / name).read_bytes() == (expected / "similarity" / name).read_bytes()
    assert (run / "probe/probe.json").read_text() == (expected / "probe/probe.json").read_text()


def test_a_worker_killed_in_a_probe_changes_no_bit(
    cluster: None, local: Path, shared_tiny: Path, tmp_path: Path, cli: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_probe, "Worker", mortal(tmp_path))
    (tmp_path / "ita_Latn").write_text("1")
    said = cli("probe", shared_tiny, "--out", tmp_path / "run", "--sources", ALL, "--engine", "ray")
    assert said.status == 0, said.err
    assert (tmp_path / "ita_Latn").read_text() == "0"  # it did die
    assert "probe: on Ray, 2 at once, each with 1 CPUs and 0 GPUs" in said.err
    assert "probe: the probe of ita_Latn died with its worker; tried again (1 of 3)" in said.err
    assert_same(tmp_path / "run", local)
    events = [json.loads(line) for line in (tmp_path / "run/events.jsonl").read_text().splitlines()]
    probed = [event for event in events if event["stage"] == "probe"]
    assert sorted(event["language"] for event in probed) == sorted(TAGS)
    assert all(len(event["losses"]) == 2 for event in probed)
    # where it was measured is no part of what was measured
    again = cli("probe", shared_tiny, "--out", tmp_path / "run", "--sources", ALL)
    assert "probe" in again.skipped


def test_a_language_that_always_dies_ends_it_and_the_rest_stays(
    cluster: None,
    local_text: Path,
    shared_tiny: Path,
    tmp_path: Path,
    cli: CommandLine,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run, dies_at = tmp_path / "run", tmp_path / "dies"
    dies_at.write_text("ukr_Cyrl")  # the last to begin
    monkeypatch.setattr(ray_probe, "Worker", stand_in(local_text, dies_at))
    command = ("probe", shared_tiny, "--out", run, *TEXT, "--engine", "ray")
    said = cli(*command, "--cpus-per-probe", "2")  # one language at a time
    assert said.status == 1
    assert [line[-8:] for line in said.err.splitlines() if "probe of ukr_Cyrl died with its worker" in line] == [
        *("(1 of 3)", "(2 of 3)", "(3 of 3)")
    ]
    assert said.last.startswith("sprachbund: the probe of ukr_Cyrl died 4 times on Ray (")
    assert said.last.endswith(
        "; the languages that are done stay, and the same command goes on from there, also with --engine local"
    )
    assert "Traceback" not in said.err
    done = files_of(run)
    assert sorted(done) == sorted(set(TAGS) - {"ukr_Cyrl"})
    dies_at.write_text("ron_Latn")  # which is done
    said = cli(*command)
    assert said.status == 0, said.err
    assert "probe: on Ray, 1 at once" in said.err
    assert done.items() <= files_of(run).items()
    assert (run / "similarity.csv").read_bytes() == (local_text / "similarity.csv").read_bytes()


def test_more_than_the_cluster_has_is_said(
    cluster: None, shared_tiny: Path, tmp_path: Path, cli: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def on_ray(*options: str) -> Said:
        return cli("probe", shared_tiny, "--out", tmp_path / "run", *TEXT, "--engine", "ray", *options)

    for options, sentence in (
        (("--gpus-per-probe", "1"), "the Ray cluster has no GPU; give --gpus-per-probe 0 to probe on CPUs"),
        (("--cpus-per-probe", "3"), "a probe takes 3 CPUs, and the largest machine of the Ray cluster has 2"),
    ):
        said = on_ray(*options)
        assert said.status == 2
        assert sentence in said.last

    class Busy:
        pass

    monkeypatch.setattr(ray_probe, "SECONDS_BETWEEN_LOOKS", 0.5)
    monkeypatch.setattr(ray_probe, "PATIENCE_SECONDS", 0.6)
    other = ray.remote(Busy).options(num_cpus=2).remote()
    try:
        said = on_ray()
    finally:
        ray.kill(other)
    assert said.status == 1
    assert "sprachbund: Ray: no worker has started in" in said.last
    assert "and the cluster has 0 CPUs and 0 GPUs free; try later" in said.last


def test_a_machine_without_the_package_is_named(
    cluster: None, shared_tiny: Path, tmp_path: Path, cli: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = ModuleType("sprachbund_elsewhere")
    monkeypatch.setitem(sys.modules, elsewhere.__name__, elsewhere)
    code = "class Worker:\n def __init__(self, *_, **__): pass\n def ready(self, *_, **__): pass"
    exec(code, elsewhere.__dict__)
    monkeypatch.setattr(ray_probe, "Worker", elsewhere.__dict__["Worker"])
    said = cli("probe", shared_tiny, "--out", tmp_path / "run", *TEXT, "--engine", "ray")
    assert said.status == 2
    assert "a machine of the Ray cluster has no module sprachbund_elsewhere; install the same version" in said.last


def test_a_worker_refuses_what_would_give_another_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shared_tiny: Path
) -> None:
    from sprachbund.recipe_file import load_recipe

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    base = DenseBase(str(tmp_path / "nowhere"), "main", False, "float32")
    worker = ray_probe.Worker(load_recipe(shared_tiny), base, threads=torch.get_num_threads(), on_gpu=False)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""
    versions = ray_probe._versions()
    assert worker.ready(versions, is_folder=False) == socket.gethostname()
    with pytest.raises(
        InputError, match=r"cannot read the base at .*nowhere; every machine must find the base, the run"
    ):
        worker.ready(versions, is_folder=True)
    with pytest.raises(InputError, match=r"has torch .* for 1\.0; install the same versions on every machine"):
        worker.ready({**versions, "torch": "1.0"}, is_folder=False)
    with pytest.raises(InputError, match=r"cannot read the tokens of ron \(train\) at .*gone\.npy; every machine"):
        worker.measure("ron_Latn", str(tmp_path / "gone.npy"), "ron (train)", [], [])
    if not torch.cuda.is_available():
        worker = ray_probe.Worker(load_recipe(shared_tiny), None, threads=torch.get_num_threads(), on_gpu=True)
        with pytest.raises(InputError, match="has a GPU that its torch cannot use; install torch with CUDA there, or"):
            worker.ready(versions, is_folder=False)


def test_how_many_probes_there_is_room_for() -> None:
    machines = [{"CPU": 16.0, "GPU": 4.0}, {"CPU": 3.0, "GPU": 8.0}, {"CPU": 32.0}]
    assert num_places(machines, cpus=1, gpus=1) == 4 + 3
    assert num_places(machines, cpus=1, gpus=0.5) == 8 + 3
    assert num_places(machines, cpus=1, gpus=0.3) == 12 + 3  # a share of one GPU, never of two
    assert num_places(machines, cpus=8, gpus=0) == 2 + 4
    with pytest.raises(InputError, match="has the 20 CPUs and 1 GPUs of a probe together; lower --cpus-per-probe"):
        num_places(machines, cpus=20, gpus=1)
    with pytest.raises(InputError, match="the largest machine of the Ray cluster has 32; give --cpus-per-probe 32"):
        num_places(machines, cpus=64, gpus=0)


def test_a_cluster_that_does_not_start_is_tried_again_and_then_said() -> None:
    class Broken:
        starts, ends = 0, 0

        def init(self, *_: Any, **__: Any) -> None:
            self.starts += 1
            if self.starts != works_at:
                raise Exception("The current node timed out during startup.")

        def shutdown(self) -> None:
            self.ends += 1

    broken, works_at = Broken(), 2
    ray_cluster._connect(broken, "local", {})
    assert (broken.starts, broken.ends) == (2, 1)
    broken, works_at = Broken(), 0
    with pytest.raises(SprachbundError, match=r"cannot be started on this machine \(The current node timed out"):
        ray_cluster._connect(broken, "local", {})
    assert (broken.starts, broken.ends) == (3, 3)
    with pytest.raises(InputError, match="--address host:1: no Ray cluster can be reached there"):
        ray_cluster._connect(broken, "host:1", {})


def closed_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@pytest.mark.parametrize("verb", ["probe", "run"])
def test_what_cannot_be_is_said_before_anything_is_done(
    verb: str, shared_tiny: Path, tmp_path: Path, cli: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def last(*options: object) -> str:
        said = cli(verb, shared_tiny, "--out", tmp_path / "run", *options)
        assert said.status == 2
        assert not (tmp_path / "run").exists()
        assert len(said.err.splitlines()) == 1
        return said.last

    assert "--engine rya is unknown, did you mean 'ray'? One of: local, ray." in last("--engine", "rya")
    assert "--address belongs to --engine ray; give both, or neither" in last("--address", "auto")
    assert "--gpus-per-probe 2: a probe runs on one GPU" in last("--engine", "ray", "--gpus-per-probe", 2)
    port = closed_port()
    unreachable = last("--engine", "ray", "--address", f"127.0.0.1:{port}")
    assert f"--address 127.0.0.1:{port}: no Ray cluster can be reached there (" in unreachable
    for address in ("ray://127.0.0.1:10001", "somewhere", "host:port"):
        assert f"--address {address}: give HOST:PORT of the cluster's head" in last(
            "--engine", "ray", "--address", address
        )
    monkeypatch.setattr(ray_cluster, "find_spec", lambda name: None)
    assert last("--engine", "ray") == (
        'sprachbund: --engine ray needs Ray: pip install "sprachbund[ray]" (on every machine of the cluster)'
    )


def descendants(mark: str) -> list[str]:
    """Return the command lines of all processes that inherited an environment with `mark` in it."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if mark.encode() in (folder / "environ").read_bytes():
                found.append((folder / "cmdline").read_text().replace("\0", " "))
        except OSError:
            continue
    return found


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds processes by /proc")
def test_an_own_cluster_leaves_nothing_when_it_is_interrupted(
    shared_tiny: Path, local_text: Path, tmp_path: Path
) -> None:
    run, errors = tmp_path / "run", tmp_path / "errors"
    with tempfile.TemporaryDirectory(dir="/tmp") as temporary, errors.open("w") as stderr:
        mark = f"SPRACHBUND_TEST_MARK={tmp_path}"
        environment = {**os.environ, "HOME": str(tmp_path), "TMPDIR": temporary, **dict([mark.split("=", 1)])}
        arguments = ["probe", str(shared_tiny), "--out", str(run), *TEXT, "--engine", "ray"]
        command = [sys.executable, "-c", SLOW, str(local_text), *arguments]
        process = subprocess.Popen(command, env=environment, stderr=stderr, stdout=subprocess.DEVNULL)
        try:
            while process.poll() is None and not (run / "probe/ron_Latn.safetensors").exists():
                time.sleep(0.05)
            assert process.poll() is None, errors.read_text()
            assert len(descendants(mark)) > 4  # Ray is many
            assert list(Path(temporary).glob("ray-*"))
            process.send_signal(signal.SIGINT)
            assert process.wait(60) == 1
        finally:
            process.kill()
            process.wait()
        for _ in range(600):  # what was told to end takes a moment
            if not (left := descendants(mark)):
                break
            time.sleep(0.1)
        assert not left
        assert not list(Path(temporary).glob("ray-*"))
    assert errors.read_text().splitlines()[-1] == (
        "sprachbund: interrupted; the same command continues where it stopped"
    )
    assert not (tmp_path / ".ray").exists()  # no token in the user's home
    assert [path.name for path in (run / "probe").glob("*.safetensors")] == ["ron_Latn.safetensors"]
    assert not list(run.rglob("*.tmp"))
