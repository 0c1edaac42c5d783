"""A language's path: what a language that came later owns, beside a model that stays as it is.

A path stands on a group, its parent: at its positions the model computes what it computes for that group, and adds the
path's own parts: an expert beside each FFN, low-rank changes of the attention, deltas on the rows of the tokens that
the language uses, an output bias and gains of the norms. All of them start by adding nothing; own rows are in the place
of the parent's, where it has any. No old tensor changes, and positions of other groups do not meet the path: their
numbers stay the same to the bit. One decision, taken before layer 0, says for the whole stack which positions are a
path's (docs/adapt.md; our own, not in the DMoE paper, which copies an expert and its router row).

In `group_ids` the paths are numbered after the groups. Hooks on the model's own modules add the parts; what they add is
read from the routing of the forward pass, so that copies of a model keep their own paths.

Shapes: B sequences, T tokens, n rows, N = B*T, D model width, V vocabulary, R rows of the path, X extended vocabulary.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from sprachbund.errors import InputError
from sprachbund.modeling.experts import GroupExperts, GroupMoe, activation_of
from sprachbund.modeling.ffn import Family, family_of
from sprachbund.modeling.ffn_weights import FfnShape, ffn_shape_of
from sprachbund.modeling.gate import LanguageGate
from sprachbund.modeling.routing import PathRows, RoutingContext, current_routing

Act = Callable[["LanguagePath", Tensor, Tensor], Tensor]  # a path, a module's inputs and outputs -> new outputs


@dataclass(frozen=True)
class PathSpec:
    """What a path is made of; None and 0 are parts that it has not.

    `languages` are its tags and `parent` the group that it stands on. `width` is that of its experts, `rank` that of
    the changes of the attention's projections, `rows` the number of tokens whose rows it changes, `bias` and `norms`
    whether it has an output bias and gains, `extension` the number of tokens that it has beyond the vocabulary.
    """

    languages: tuple[str, ...]
    parent: int
    width: int | None = None
    rank: int | None = None
    rows: int = 0
    bias: bool = False
    norms: bool = False
    extension: int = 0

    def entry(self) -> dict[str, Any]:
        """Return the entry of the configuration's `language_paths`, which JSON can hold."""
        return {**asdict(self), "languages": list(self.languages)}


def spec_of(entry: dict[str, Any]) -> PathSpec:
    """Return the path that an entry of `config.language_paths` describes."""
    return PathSpec(**{**entry, "languages": tuple(entry["languages"])})


def path_specs(config: Any) -> list[PathSpec]:
    """Return the paths of a configuration, in the order of their group ids; none for a dense model."""
    return [spec_of(entry) for entry in getattr(config, "language_paths", None) or []]


def all_groups(config: Any) -> dict[str, int]:
    """Return the group id of every language that a model knows: of those of its groups, then of those with a path."""
    later = {
        tag: config.num_groups + number for number, spec in enumerate(path_specs(config)) for tag in spec.languages
    }
    return {**config.groups, **later}


def num_group_ids(config: Any) -> int:
    """Return how many group ids a mixture has: groups, then paths."""
    return int(config.num_groups) + len(getattr(config, "language_paths", None) or [])


class LowRank(nn.Module):
    """The change of a projection as a product of two factors, `a` (R, in), applied first, and `b` (out, R), zero at
    first (LoRA; Hu et al. 2022, without its scale).
    """

    def __init__(self, columns_in: int, columns_out: int, rank: int) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.empty(rank, columns_in))
        self.b = nn.Parameter(torch.empty(columns_out, rank))

    @torch.no_grad()
    def reset(self, generator: torch.Generator | None = None) -> None:
        """Draw the first factor, with outputs of the inputs' scale, and make the other one zero."""
        self.a.normal_(std=self.a.shape[1] ** -0.5, generator=generator)
        self.b.zero_()

    def forward(self, rows: Tensor) -> Tensor:
        """Return what is added to the projection's output, (..., out), from its input, (..., in)."""
        return F.linear(F.linear(rows, self.a.to(rows.dtype)), self.b.to(rows.dtype))


class _LayerPath(nn.Module):
    """A path's parts in one decoder layer; the names of projections and norms are those in the layer."""

    def __init__(self, spec: PathSpec, config: Any, family: Family, layer: nn.Module) -> None:
        super().__init__()
        ffn = getattr(layer, family.ffn)
        self.expert: GroupExperts | None = None
        if spec.width is not None:
            shape = replace(_shape_of_ffn(family, ffn), width=spec.width, rank=None)
            self.expert = GroupExperts(config, 1, shape, activation_of(family, ffn), fused=family.gate_up is not None)
        projections = attention_projections(family, layer) if spec.rank is not None else {}
        self.attention = nn.ModuleDict(
            {_key(name): LowRank(*_in_out(module), spec.rank or 1) for name, module in projections.items()}
        )
        norms = _norms(layer) if spec.norms else {}
        self.norms = nn.ParameterDict({_key(name): _gain(module) for name, module in norms.items()})


class LanguagePath(nn.Module):
    """All that one path owns. Fresh ones hold whatever memory held: `reset` starts them."""

    tokens: Tensor
    norms: nn.ParameterDict
    output_bias: nn.Parameter | None

    def __init__(self, spec: PathSpec, config: Any, inner: Any) -> None:
        """Build a path for an inner model, whose modules tell the shapes."""
        super().__init__()
        family = family_of(config.dense_model_type)
        self.spec = spec
        self.layers = nn.ModuleList(_LayerPath(spec, config, family, layer) for layer in getattr(inner, family.layers))
        final = {name: module for name, module in inner.named_children() if _is_norm(module)} if spec.norms else {}
        self.norms = nn.ParameterDict({_key(name): _gain(module) for name, module in final.items()})
        width = inner.get_input_embeddings().weight.shape[1]
        own_output = not getattr(config, "tie_word_embeddings", False)
        for what, count in (("rows", spec.rows), ("extension", spec.extension)):
            for side in ("input", *(("output",) if own_output else ())):
                table = nn.Parameter(torch.empty(count, width)) if count else None
                self.register_parameter(f"{side}_{what}", table)
        biases = config.vocab_size + spec.extension if spec.bias else 0
        self.register_parameter("output_bias", nn.Parameter(torch.empty(biases)) if biases else None)
        self.register_buffer("tokens", torch.zeros(spec.rows, dtype=torch.int64))
        self.language_gate = LanguageGate(config.vocab_size, [0] * len(spec.languages), 1)

    @torch.no_grad()
    def reset(self, *, seed: int = 0) -> None:
        """Start all parts, so that the path computes what its parent does."""
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in self.named_parameters():
            if ".act_fn." not in name:  # a trained activation function is the FFN's
                parameter.zero_()
        for layer in self.layers:
            for low_rank in layer.attention.values():  # type: ignore[operator]
                low_rank.reset(generator)
            expert: Any = layer.expert
            if expert is not None:
                for name, parameter in expert.named_parameters():
                    if name in ("gate_up_proj", "up_proj"):
                        parameter.normal_(std=parameter.shape[-1] ** -0.5, generator=generator)

    def table(self, what: str, *, output: bool) -> Tensor | None:
        """Return the path's `rows` or `extension`, (R or X, D), of the embedding or of the output."""
        own = getattr(self, f"output_{what}", None) if output else None
        found: Tensor | None = own if own is not None else getattr(self, f"input_{what}")
        return found


def _key(name: str) -> str:
    """Return a module's name as one of our own parts may have it."""
    return name.replace(".", "/")


def _in_out(projection: nn.Module) -> tuple[int, int]:
    """Return how many columns a projection takes and gives."""
    if isinstance(projection, Conv1D):
        return int(projection.weight.shape[0]), int(projection.weight.shape[1])
    weight: Any = projection.weight
    return int(weight.shape[1]), int(weight.shape[0])


def attention_projections(family: Family, layer: nn.Module) -> dict[str, nn.Module]:
    """Return the linear maps of a decoder layer that are not its FFN's, by name."""
    return {
        name: module
        for name, module in layer.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and not f"{name}.".startswith(f"{family.ffn}.")
    }


def _is_norm(module: nn.Module) -> bool:
    weight = getattr(module, "weight", None)
    return "norm" in type(module).__name__.lower() and weight is not None and weight.dim() == 1


def _norms(layer: nn.Module) -> dict[str, nn.Module]:
    return {name: module for name, module in layer.named_modules() if _is_norm(module)}


def _gain(norm: nn.Module) -> nn.Parameter:
    weight: Any = norm.weight
    return nn.Parameter(torch.empty(weight.shape))


def _shape_of_ffn(family: Family, ffn: nn.Module) -> FfnShape:
    """Return the shape of a layer's dense FFN, also where copies of it have taken its place."""
    if not isinstance(ffn, GroupMoe):
        return ffn_shape_of(family, ffn)
    if ffn.shared_expert is not None:
        return ffn_shape_of(family, ffn.shared_expert)
    name = "gate_up_proj" if ffn.experts.has_gate else "up_proj"
    hidden_size = getattr(ffn.experts, name).shape[-1]
    return FfnShape(hidden_size, ffn.experts.width, ffn.experts.has_gate, ffn.experts.has_bias)


# --- what the hooks do


def _places(context: RoutingContext, length: int) -> Sequence[PathRows]:
    """Return the rows of each path among the last `length` tokens of every sequence."""
    ids_BT = context.path_ids
    assert ids_BT is not None
    if length == ids_BT.shape[1]:
        return context.path_rows
    last_Bt = ids_BT[:, ids_BT.shape[1] - length :]
    by_number = {rows.number: rows.path for rows in context.path_rows}
    return rows_of_paths(last_Bt, [by_number.get(number) for number in range(max(by_number) + 1)])


def rows_of_paths(path_ids: Tensor, paths: Sequence[Any]) -> list[PathRows]:
    """Return the positions of each path that has any, from the numbers of paths, (B, T), -1 for none.

    The i-th of `paths` has the number i.
    """
    flat_N = path_ids.flatten()
    found = []
    for number, path in enumerate(paths):
        if path is None:
            continue
        mine_N = flat_N == number
        if bool(mine_N.any()):
            found.append(PathRows(path, number, None if bool(mine_N.all()) else mine_N.nonzero().squeeze(1)))
    return found


def _hook(act: Act, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
    """Let the paths that have positions in this forward pass change a module's output there."""
    context = current_routing()
    if context is None or not context.path_rows:
        return None
    inputs: Tensor = args[0]
    for rows in _places(context, output.shape[1]):
        if rows.index is None:
            return act(rows.path, inputs, output)
        flat = output.flatten(0, 1)
        changed = act(rows.path, inputs.flatten(0, 1)[rows.index], flat[rows.index])
        output = flat.index_copy(0, rows.index, changed.to(flat.dtype)).view(output.shape)
    return output


def _expert(index: int, path: LanguagePath, inputs: Tensor, output: Tensor) -> Tensor:
    expert: Any = path.layers[index].expert
    if expert is None:
        return output
    rows_nD = inputs.reshape(-1, inputs.shape[-1])
    added: Tensor = expert(rows_nD, counts=[len(rows_nD)])
    return output + added.view(output.shape).to(output.dtype)


def _attention(index: int, key: str, path: LanguagePath, inputs: Tensor, output: Tensor) -> Tensor:
    projections: Any = path.layers[index].attention
    if key not in projections:
        return output
    added: Tensor = projections[key](inputs)
    return output + added.to(output.dtype)


def _norm(index: int | None, key: str, path: LanguagePath, inputs: Tensor, output: Tensor) -> Tensor:
    gains: Any = path.norms if index is None else path.layers[index].norms
    return output * (1 + gains[key].to(output.dtype)) if key in gains else output


def _no_extension(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
    """Let the embedding read some token of its own where a path's extended token stands."""
    context = current_routing()
    if context is None or not any(rows.path.spec.extension for rows in context.path_rows):
        return None
    rows: Any = module.weight
    return (args[0].masked_fill(args[0] >= len(rows), 0), *args[1:])


def _input_rows(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
    """Add the input rows of each path to the embeddings of its positions; extended tokens have theirs alone."""
    context = current_routing()
    if context is None or not context.path_rows or context.tokens is None:
        return None
    scale = getattr(module, "embed_scale", None)  # Gemma's embedding multiplies its rows
    flat, ids_N = output.flatten(0, 1), context.tokens.flatten()
    weight: Any = module.weight
    for rows in context.path_rows:
        ids_n = ids_N if rows.index is None else ids_N[rows.index]
        old = flat if rows.index is None else flat[rows.index]
        changed = _with_rows(rows.path, ids_n, old, len(weight), scale)
        flat = changed if rows.index is None else flat.index_copy(0, rows.index, changed)
    return flat.view(output.shape)


def _with_rows(path: LanguagePath, ids_n: Tensor, old_nD: Tensor, vocab_size: int, scale: Any) -> Tensor:
    """Return the embeddings of one path's positions."""
    factor = 1 if scale is None else scale.to(old_nD.dtype)
    table_RD = path.table("rows", output=False)
    if table_RD is not None:
        slots_n = torch.searchsorted(path.tokens, ids_n).clamp(max=len(path.tokens) - 1)
        known_n = (path.tokens[slots_n] == ids_n).unsqueeze(1)
        old_nD = old_nD + F.embedding(slots_n, table_RD).to(old_nD.dtype) * known_n * factor
    extension_XD = path.table("extension", output=False)
    if extension_XD is not None:
        beyond_n = ids_n >= vocab_size
        own_nD = F.embedding((ids_n - vocab_size).clamp(min=0), extension_XD).to(old_nD.dtype) * factor
        old_nD = torch.where(beyond_n.unsqueeze(1), own_nD, old_nD)
    return old_nD


def _output_rows(path: LanguagePath, hidden: Tensor, logits: Tensor) -> Tensor:
    """Return a path's logits, (..., V), or (..., V + X) where it has more tokens, from the last hidden states."""
    rows_RD, extension_XD = path.table("rows", output=True), path.table("extension", output=True)
    if rows_RD is not None:
        logits = logits.index_add(-1, path.tokens, F.linear(hidden, rows_RD.to(hidden.dtype)).to(logits.dtype))
    if extension_XD is not None:
        more = F.linear(hidden, extension_XD.to(hidden.dtype)).to(logits.dtype)
        logits = torch.cat([logits, more], dim=-1)
    if path.output_bias is not None:
        logits = logits + path.output_bias.to(logits.dtype)
    return logits


def _head(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
    """Give each path's positions its own logits; where a path has more tokens, others give them no probability."""
    context = current_routing()
    if context is None or not context.path_rows:
        return None
    most = max(rows.path.spec.extension for rows in context.path_rows)
    hidden, flat = args[0], output.flatten(0, 1)
    flat = F.pad(flat, (0, most), value=-torch.inf)
    for rows in _places(context, output.shape[1]):
        if rows.index is None:
            return _output_rows(rows.path, hidden, output)
        own = _output_rows(rows.path, hidden.flatten(0, 1)[rows.index], output.flatten(0, 1)[rows.index])
        own = F.pad(own, (0, flat.shape[1] - own.shape[1]), value=-torch.inf)
        flat = flat.index_copy(0, rows.index, own)
    return flat.view(*output.shape[:2], -1)


def hook_inner(inner: Any, config: Any) -> None:
    """Let paths act in an inner model: its embedding, layers and last norm. To be called once."""
    family = family_of(config.dense_model_type)
    embedding = inner.get_input_embeddings()
    if not isinstance(embedding, nn.Embedding):
        raise InputError(f"a path needs a plain embedding, which {config.model_type} models lack")
    embedding.register_forward_pre_hook(_no_extension)
    embedding.register_forward_hook(_input_rows)
    for index, layer in enumerate(getattr(inner, family.layers)):
        getattr(layer, family.ffn).register_forward_hook(partial(_hook, partial(_expert, index)))
        for name, module in attention_projections(family, layer).items():
            module.register_forward_hook(partial(_hook, partial(_attention, index, _key(name))))
        for name, module in _norms(layer).items():
            module.register_forward_hook(partial(_hook, partial(_norm, index, _key(name))))
    for name, module in inner.named_children():
        if _is_norm(module):
            module.register_forward_hook(partial(_hook, partial(_norm, None, _key(name))))


def hook_head(model: Any, config: Any) -> None:
    """Let paths act in a causal model's output layer. To be called once."""
    head = model.get_output_embeddings()
    if not isinstance(head, nn.Linear):
        raise InputError(f"a path needs a plain output layer, which {config.model_type} models lack")
    head.register_forward_hook(_head)
