"""Where each model family keeps its feed-forward network (FFN), and how it is shaped."""

from dataclasses import dataclass

from sprachbund.errors import InputError, nearest


@dataclass(frozen=True)
class Family:
    """One dense decoder family of transformers.

    `module` is its modeling module, `prefix` the prefix of its class names; a decoder layer keeps a gated FFN
    `ffn` with the projections `gate`, `up` and `down`: down(act(gate(x)) * up(x)).
    """

    model_type: str
    module: str
    prefix: str
    ffn: str = "mlp"
    gate: str = "gate_proj"
    up: str = "up_proj"
    down: str = "down_proj"


FAMILIES = {
    family.model_type: family
    for family in (
        Family("llama", "transformers.models.llama.modeling_llama", "Llama"),
        Family("qwen3", "transformers.models.qwen3.modeling_qwen3", "Qwen3"),
    )
}


def family_of(model_type: str) -> Family:
    """Return the registry entry of a dense model type; raises InputError for families that are not supported."""
    family = FAMILIES.get(model_type)
    if family is None:
        raise InputError(
            f"the base is a {model_type!r} model, a family that is not supported "
            f"(supported: {', '.join(FAMILIES)}){nearest(model_type, FAMILIES)}"
        )
    return family
