"""What a model is, from its configuration alone: nothing is downloaded but config.json, and no weight is read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from sprachbund.errors import InputError
from sprachbund.files import model_of
from sprachbund.modeling.base import load_config
from sprachbund.modeling.config import dense_config
from sprachbund.modeling.ffn import FAMILIES
from sprachbund.modeling.ffn_weights import FfnShape
from sprachbund.modeling.language_path import path_specs
from sprachbund.modeling.model import inner_model, is_dmoe, mixture_layers
from sprachbund.modeling.parameters import ParameterCounts, count_parameters
from sprachbund.modeling.skeleton import dense_ffn_shape, skeleton
from sprachbund.modeling.tables import layer_table

BYTES = {"float32": 4, "bfloat16": 2}


@dataclass(frozen=True)
class LaterPath:
    """The path of languages that came later: their group id, the group that it stands on, and how large it is.

    `extension` is the number of tokens that it has beyond the vocabulary.
    """

    group_id: int
    languages: list[str]
    parent: int
    parameters: int
    extension: int


@dataclass(frozen=True)
class Mixture:
    """The mixture layers of a model of this package.

    `experts` counts them per mixture layer, in the order of `layers`; `width` is an expert's, in units, and `rank` that
    of its factors, if it has any; `groups` has the languages of each group, [] where groups have only numbers.

    In a hierarchy every group of `groups` is a language: `experts` and `width` are those of groups of languages, and
    `language_width` is the width of the expert that each language has beside it. `kind` is that of the configuration.
    `rows` says what the tables of keyed rows are kept by, `group`, `language` or `all`, None where there are none;
    `row_tables` counts them. `expert_of_group` is the expert of `experts` that each group has in every layer, [] where
    each has its own or layers differ. `paths` are those of languages that came later, and `path_gate` says how text
    that nothing is said about finds them.
    """

    layers: list[int]
    experts: list[int]
    groups: list[list[str]]
    kind: str
    width: int
    language_width: int | None
    rank: int | None
    rows: str | None
    row_tables: int
    expert_of_group: list[int]
    routing: str
    num_experts_per_tok: int
    router_gradient: str
    paths: list[LaterPath]
    path_gate: str


@dataclass(frozen=True)
class Description:
    """A model by its configuration.

    `family` is the dense model type, None for one that the registry does not know; `ffn` the dense FFN's shape there.
    `mixture` is None for a model of another kind. `bytes` has the size of all weights per dtype, the gate's table
    (always float32) included. `refusal` says why the model cannot be expanded; None where it can.
    """

    model_type: str
    architecture: str
    family: str | None
    num_layers: int
    hidden_size: int
    vocab_size: int
    parameters: ParameterCounts
    bytes: dict[str, int]
    ffn: FfnShape | None
    mixture: Mixture | None
    refusal: str | None


def describe(model: str | Path) -> Description:
    """Describe a run's model, a folder with a config.json, or a model on the Hub.

    Raises InputError where there is no configuration, or one that transformers does not know.
    """
    return describe_config(read_config(model))


def read_config(model: str | Path) -> Any:
    """Return the configuration of a run's model, of a folder, or of a model on the Hub; no code is run.

    Raises InputError where there is none that can be read.
    """
    folder = Path(model).expanduser()
    if folder.is_dir():
        folder = model_of(folder)
        if not (folder / "config.json").is_file():
            raise InputError(f"{folder} has no config.json; give the folder of a model or a run, or a Hub id")
    elif folder.exists() or str(model).startswith((".", "/", "~")) or str(model).count("/") > 1:
        raise InputError(f"{model} is no folder; give the folder of a model or a run, or a Hub id")
    return load_config(folder if folder.is_dir() else model)


def describe_config(config: Any) -> Description:
    """Describe a model by a configuration of transformers or of this package; raises InputError as `describe`."""
    model = skeleton(config)
    decoder = config.get_text_config()
    if not all(hasattr(decoder, name) for name in ("num_hidden_layers", "hidden_size", "vocab_size")):
        raise InputError(f"a model of type {config.model_type!r} is no plain decoder, and cannot be described")
    counts = count_parameters(model) if is_dmoe(model) else _counts_with_experts(model, decoder)
    gates = [buffer for name, buffer in model.named_buffers() if "language_gate." in name]
    table = sum(buffer.numel() * buffer.element_size() for buffer in gates)
    family = FAMILIES.get(getattr(config, "dense_model_type", config.model_type))
    ffn, refusal = _dense_ffn(dense_config(config) if is_dmoe(model) else config)
    return Description(
        model_type=config.model_type,
        architecture=type(model).__name__,
        family=family.model_type if family else None,
        num_layers=decoder.num_hidden_layers,
        hidden_size=decoder.hidden_size,
        vocab_size=decoder.vocab_size,
        parameters=counts,
        bytes={dtype: counts.total * size + table for dtype, size in BYTES.items()},
        ffn=ffn,
        mixture=_mixture(config, model) if is_dmoe(model) else None,
        refusal=_expanded_already(config) if is_dmoe(model) else refusal,
    )


def _counts_with_experts(model: nn.Module, config: Any) -> ParameterCounts:
    """Count a model that is not ours: all its parameters, and of routed experts those that one token uses."""
    total = sum(parameter.numel() for parameter in model.parameters())
    chosen = getattr(config, "num_experts_per_tok", None) or 0
    idle = 0
    for module in model.modules():
        fused = [tensor for tensor in module.parameters(recurse=False) if tensor.dim() > 1]
        count = getattr(module, "num_experts", 0)
        if chosen and fused and all(len(tensor) == count and tensor.dim() == 3 for tensor in fused):
            idle += sum(tensor.numel() for tensor in fused) // count * max(count - chosen, 0)
    return ParameterCounts(total, total - idle)


def _dense_ffn(config: Any) -> tuple[FfnShape | None, str | None]:
    """Return the shape of a dense model's FFN, or the reason why it cannot be expanded."""
    try:
        shape = dense_ffn_shape(config)
    except InputError as error:
        return None, str(error).partition("; give ")[0]
    if getattr(config, "quantization_config", None):
        return shape, "the base is quantised; experts need the unquantised checkpoint"
    return shape, None


def _expanded_already(config: Any) -> str:
    return f"the model is a {config.model_type!r} mixture: it has been expanded already"


def _mixture(config: Any, model: Any) -> Mixture:
    groups: list[list[str]] = [[] for _ in range(config.num_groups)]
    for tag in config.languages:
        groups[config.groups[tag]].append(tag)
    layers = sorted(config.moe_layers)
    tables = [layer_table(config, layer) for layer in layers]
    same = all(table == tables[0] for table in tables) and tables[0] != list(range(config.num_groups))
    return Mixture(
        layers=layers,
        experts=[max(table) + 1 for table in tables],
        groups=groups,
        kind=config.expert_kind,
        width=mixture_layers(model)[0].experts.width,
        language_width=config.language_width,
        rank=config.expert_rank,
        rows=rows_by(config),
        row_tables=len(set(config.row_of_group)),
        expert_of_group=tables[0] if same else [],
        routing=config.routing,
        num_experts_per_tok=config.num_experts_per_tok,
        router_gradient=config.router_gradient,
        paths=_paths(config, model),
        path_gate=config.path_gate,
    )


def _paths(config: Any, model: Any) -> list[LaterPath]:
    paths = getattr(inner_model(model), "language_paths", ())
    return [
        LaterPath(
            group_id=config.num_groups + number,
            languages=list(spec.languages),
            parent=spec.parent,
            parameters=sum(parameter.numel() for parameter in path.parameters()),
            extension=spec.extension,
        )
        for number, (spec, path) in enumerate(zip(path_specs(config), paths, strict=True))
    ]


def rows_by(config: Any) -> str | None:
    """Return what a mixture's keyed rows are kept by, `group`, `language` or `all`; None where it has none.

    Where each group of languages is a single one, those of groups are those of languages.
    """
    tables = len(set(config.row_of_group))
    if tables < 2:
        return "all" if tables else None
    return "language" if tables == config.num_groups == len(config.languages) else "group"
