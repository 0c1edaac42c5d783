"""X-MOD: an encoder with a bottleneck adapter for every language in every layer, on the same bank as our experts.

Source: Pfeiffer et al., "Lifting the Curse of Multilinguality by Pre-training Modular Transformers" (NAACL 2022). It is
the corner of our design with one module per language and no router; here it serves as a rival and as a check: with the
weights of transformers' XmodModel it computes the same.

The layer's last LayerNorm is used twice, before the adapter and after it, which is easy to miss: h = LN(x + FFN(x)),
then LN(h + W2 act(W1 h + b1) + b2). An adapter of zeros is therefore no identity, and X-MOD is trained with its
adapters from the start; adapters for a model that is trained already are `expand`'s kind `adapter`.

Shapes: B sequences, T tokens of a sequence, t tokens of a part of it, L languages, D model width, F adapter width.
"""

from collections.abc import Iterator, Sequence
from dataclasses import field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import XLMRobertaConfig, XLMRobertaModel
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.initialization import no_init_weights
from transformers.models.xlm_roberta.modeling_xlm_roberta import XLMRobertaLayer, XLMRobertaOutput

from sprachbund.errors import InputError, nearest
from sprachbund.modeling.experts import GroupExperts
from sprachbund.modeling.ffn_weights import FfnShape
from sprachbund.modeling.model import RoutedLayer
from sprachbund.modeling.products import gather_rows
from sprachbund.modeling.routing import RoutingContext, current_routing, dispatch, routed

# What X-MOD can be configured to do otherwise, and what the paper's models do: the only thing that is built here.
_AS_PUBLISHED = {
    "pre_norm": False,
    "adapter_layer_norm": False,
    "adapter_reuse_layer_norm": True,
    "ln_before_adapter": True,
    "is_decoder": False,
}


class XmodBankConfig(XLMRobertaConfig):  # type: ignore[misc]
    """XLM-RoBERTa's configuration, and the languages, whose numbers are their places, with the adapters' width F."""

    model_type = "xmod_bank"

    languages: list[str] = field(default_factory=list)
    adapter_width: int = 384


def adapter_shape(hidden_size: int, width: int) -> FfnShape:
    """Return the shape of one adapter: W1 (F, D) and W2 (D, F), both with biases, and no gate."""
    return FfnShape(hidden_size, width, gated=False, bias=True)


def parameters_per_language(hidden_size: int, num_layers: int, reduction: int = 2) -> int:
    """Return what one more language adds: an adapter of width D // reduction in every layer.

    7,091,712 at the size of XLM-R base (D = 768, 12 layers), X-MOD's own setting.
    """
    return num_layers * adapter_shape(hidden_size, hidden_size // reduction).num_parameters


class _BankOutput(XLMRobertaOutput):  # type: ignore[misc]
    """The end of a layer: FFN and LayerNorm as XLM-RoBERTa has them, then the language's adapter and the same norm."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        shape = adapter_shape(config.hidden_size, config.adapter_width)
        self.bank = GroupExperts(config, len(config.languages), shape, ACT2FN[config.hidden_act])

    def forward(self, hidden_states: Tensor, input_tensor: Tensor) -> Tensor:
        """Return the layer's output, (B, t, D): all the tokens of the sequences, or a part of each."""
        hidden_BtD = super().forward(hidden_states, input_tensor)
        adapted_BtD = self.dropout(self._adapt(hidden_BtD))
        return self.LayerNorm(adapted_BtD + hidden_BtD)  # type: ignore[no-any-return]

    def _adapt(self, hidden_BtD: Tensor) -> Tensor:
        """Apply to each sequence the adapter of its language; whole sequences are brought together, not rows."""
        routing = current_routing()
        if routing is None or routing.plan is None:
            raise RuntimeError("a layer with adapters was called outside its model: no language is known")
        plan, (num_sequences, length, width) = routing.plan, hidden_BtD.shape
        ordered = gather_rows(hidden_BtD.reshape(num_sequences, -1), plan.order, plan.inverse)
        counts = [count * length for count in plan.counts]
        adapted = self.bank(ordered.view(-1, width), counts=counts).view(num_sequences, -1)
        return gather_rows(adapted, plan.inverse, plan.order).view(hidden_BtD.shape)


class _BankLayer(RoutedLayer, XLMRobertaLayer):  # type: ignore[misc]
    """An encoder layer that knows the languages of its sequences."""


class XmodBankModel(XLMRobertaModel):  # type: ignore[misc]
    """XLM-RoBERTa with a bank of adapters in every layer, keyed by language.

    A batch may mix languages: `forward` takes `lang_ids`, (B,), beside XLM-RoBERTa's arguments.
    """

    config_class = XmodBankConfig

    def __init__(self, config: Any, add_pooling_layer: bool = True) -> None:
        """Build the model; raises InputError for a configuration without languages, or with one twice."""
        if not config.languages or len(set(config.languages)) < len(config.languages):
            raise InputError(f"languages = {list(config.languages)}: give at least one, and each once")
        super().__init__(config, add_pooling_layer=add_pooling_layer)
        for layer in self.encoder.layer:
            layer.__class__ = _BankLayer
            layer.output = _BankOutput(config)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Initialise adapters as transformers does X-MOD's: normal weights, biases of zero."""
        if not isinstance(module, GroupExperts):
            super()._init_weights(module)
            return
        for name, parameter in module.named_parameters(recurse=False):
            if name.endswith("_bias"):
                init.zeros_(parameter)
            else:
                init.normal_(parameter, mean=0.0, std=self.config.initializer_range)

    def language_ids(self, languages: Sequence[str]) -> Tensor:
        """Return the numbers of languages, (B,), by name; raises InputError for one that has no adapter."""
        known = list(self.config.languages)
        for language in languages:
            if language not in known:
                near = nearest(language, known) or f"; it has {', '.join(known)}"
                raise InputError(f"the model has no adapter for the language {language!r}{near}")
        return torch.tensor([known.index(language) for language in languages], device=self.device)

    def forward(self, *args: Any, lang_ids: Tensor | None = None, **kwargs: Any) -> Any:
        """Run the encoder with `lang_ids`, (B,), the number of each sequence's language.

        Raises InputError where they are missing, of another shape, or name a language that has no adapter, and where
        there are no tokens.
        """
        given = args[0] if args else kwargs.get("input_ids")
        given = kwargs.get("inputs_embeds") if given is None else given
        if given is None:
            raise InputError("the model was given nothing to read: give input_ids or inputs_embeds")
        ids_B = self._checked(lang_ids, len(given))
        context = RoutingContext("group", ids_B, decided=True, group_ids=ids_B)
        context.plan = dispatch(ids_B, len(self.config.languages))
        with routed(context):
            return super().forward(*args, **kwargs)

    def _checked(self, lang_ids: Tensor | None, num_sequences: int) -> Tensor:
        names = list(self.config.languages)
        if lang_ids is None:
            raise InputError(f"lang_ids is missing: give the number of each sequence's language, 0 to {len(names) - 1}")
        if tuple(lang_ids.shape) != (num_sequences,) or lang_ids.dtype not in (torch.int64, torch.int32):
            raise InputError(
                f"lang_ids has shape {tuple(lang_ids.shape)} and type {lang_ids.dtype}; the batch needs "
                f"({num_sequences},) whole numbers (torch.int64)"
            )
        unknown = sorted({number for number in lang_ids.tolist() if not 0 <= number < len(names)})
        if unknown:
            raise InputError(
                f"lang_ids has {unknown[0]}, and the model has adapters for {len(names)} languages: 0 to "
                f"{len(names) - 1} ({', '.join(names)})"
            )
        return lang_ids.to(self.device)


def freeze_embeddings_and_banks(model: XmodBankModel) -> None:
    """Freeze what X-MOD keeps when the shared weights are fine-tuned on a task in one language.

    Another language's adapter then fits the fine-tuned body: the zero-shot transfer of the paper.
    """
    model.embeddings.requires_grad_(False)
    for layer in model.encoder.layer:
        layer.output.bank.requires_grad_(False)


@torch.no_grad()
def from_xmod(xmod: Any) -> XmodBankModel:
    """Return ours with the weights of a transformers X-MOD model, its encoder or one with a head, which is left out.

    Languages keep their numbers. Raises InputError for a configuration that is not the published one: norms placed
    otherwise, or a decoder.
    """
    theirs = getattr(xmod, "roberta", xmod)
    for name, published in _AS_PUBLISHED.items():
        if (found := getattr(theirs.config, name)) != published:
            raise InputError(f"this X-MOD model has {name} = {found}; only {name} = {published} is supported")
    values = theirs.config.to_dict()
    known = {key: values[key] for key in values if key in XLMRobertaConfig().to_dict() and key != "model_type"}
    config = XmodBankConfig(
        **known,
        languages=[str(language) for language in theirs.config.languages],
        adapter_width=theirs.encoder.layer[0].output.adapter_modules[str(theirs.config.languages[0])].bottleneck_size,
    )
    with no_init_weights():
        ours: XmodBankModel = XmodBankModel(config, add_pooling_layer=theirs.pooler is not None).to(theirs.dtype)
    shared = {name: tensor for name, tensor in theirs.state_dict().items() if ".adapter_modules." not in name}
    ours.load_state_dict(shared | dict(_banks(theirs, config.languages)))
    ours.train(theirs.training).to(theirs.device)
    return ours


def _banks(xmod: Any, languages: Sequence[str]) -> Iterator[tuple[str, Tensor]]:
    """Yield the banks' tensors, (L, ...), by their names in ours."""
    for number, layer in enumerate(xmod.encoder.layer):
        adapters = [layer.output.adapter_modules[language] for language in languages]
        for ours, theirs in (("up_proj", "dense1"), ("down_proj", "dense2")):
            for suffix, kind in (("", "weight"), ("_bias", "bias")):
                stacked = torch.stack([getattr(getattr(adapter, theirs), kind) for adapter in adapters])
                yield f"encoder.layer.{number}.output.bank.{ours}{suffix}", stacked
