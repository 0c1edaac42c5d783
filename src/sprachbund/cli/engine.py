"""The options that say where a probe runs: they change no result, so that they are no part of a recipe."""

from typing import TYPE_CHECKING, Annotated

import typer

from sprachbund.errors import InputError, nearest

if TYPE_CHECKING:
    from sprachbund.run.probing import Engine

ENGINES = ("local", "ray")

EngineOption = Annotated[
    str, typer.Option("--engine", help="Where languages are probed: local (one after the other), or ray.")
]
AddressOption = Annotated[
    str | None,
    typer.Option(
        "--address",
        help="Ray: HOST:PORT of a cluster, auto, or local; default $RAY_ADDRESS, else local.",
        show_default=False,
    ),
]
GpusOption = Annotated[
    float | None,
    typer.Option("--gpus-per-probe", help="Ray: 0 to 1; default 1 where there are GPUs.", show_default=False),
]
CpusOption = Annotated[
    int | None,
    typer.Option(
        "--cpus-per-probe",
        min=1,
        help="Ray: CPUs and threads; default those of the local engine, on a GPU 1.",
        show_default=False,
    ),
]


def probe_engine(engine: str, address: str | None, gpus: float | None, cpus: int | None) -> "Engine":
    """Return the engine of the options; raises InputError for what cannot be, before anything is done."""
    if engine not in ENGINES:
        raise InputError(f"--engine {engine} is unknown{nearest(engine, ENGINES) or '.'} One of: {', '.join(ENGINES)}.")
    if engine == "local":
        given = {"--address": address, "--gpus-per-probe": gpus, "--cpus-per-probe": cpus}
        for name, value in given.items():
            if value is not None:
                raise InputError(f"{name} belongs to --engine ray; give both, or neither")
        from sprachbund.run.probing import measure_here

        return measure_here
    from sprachbund.run.ray_cluster import check_ray

    check_ray(address)
    from sprachbund.run.ray_probe import RayEngine

    return RayEngine(address, gpus, cpus)
