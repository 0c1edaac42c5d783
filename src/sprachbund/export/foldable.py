"""What of a mixture becomes plain weights in an export, and which mixtures have no plain dense model."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from sprachbund.modeling.config import dense_config
from sprachbund.modeling.experts import banks
from sprachbund.modeling.ffn import family_of
from sprachbund.modeling.language_path import path_specs
from sprachbund.modeling.skeleton import dense_ffn_shape


def why_not_dense(config: Any) -> str | None:
    """Say why a group cannot be folded into a dense model; None where it can."""
    base = config.dense_model_type
    if config.expert_kind == "adapter":
        return (
            "no FFN of a dense model computes a bottleneck on the FFN's own output, which the experts of kind adapter "
            "are; only a mixture of kind copy or shared can be exported as a dense model"
        )
    if config.expert_kind == "shared" and family_of(base).trained_activation:
        return (
            f"the FFNs of {base} models have activation functions with trained weights, so that one FFN cannot hold "
            "the shared FFN and an expert; only a mixture of kind copy can be exported as a dense model"
        )
    if config.expert_kind == "shared" and family_of(base).width is None:
        return (
            f"the FFNs of {base} models have a fixed width, so that one FFN cannot hold the shared FFN and an expert; "
            "only a mixture of kind copy can be exported as a dense model"
        )
    return None


def stored_otherwise(config: Any, *, every_expert: bool = False) -> list[str]:
    """Return what an export's files hold in another form than the mixture's: products of factors, sums of rows.

    `every_expert`: they hold all experts of the mixture, as native architectures do.
    """
    found = []
    if config.expert_rank is not None:
        shapes = [
            bank.shape for bank in banks(config, dense_ffn_shape(dense_config(config)), layer=config.moe_layers[0])
        ]
        whole = sum(replace(shape, rank=None).num_parameters for shape in shapes)
        factors = sum(shape.num_parameters for shape in shapes)
        larger = ", so that the file is larger than the model" if every_expert and whole > factors else ""
        found.append(
            f"the factors of the experts, of rank {config.expert_rank}, are multiplied out: {whole:,} numbers for each "
            f"instead of {factors:,}{larger}"
        )
    if config.row_of_group:
        found.append("the deltas of the keyed rows are added to the embedding and the output rows")
    if found and half_precision(config):
        found.append("products and sums are stored in float32, since half precision would round them")
    return found


def path_languages(config: Any) -> list[str]:
    """Return the languages that came later, each on a path, of which no export holds anything."""
    return [tag for spec in path_specs(config) for tag in spec.languages]


def half_precision(config: Any) -> bool:
    """Is the model's own type another than float32?"""
    return str(getattr(config, "dtype", None) or "float32").removeprefix("torch.") != "float32"


def instead(config: Any) -> str:
    """Return what is possible for a mixture that no native architecture holds."""
    said = "the model as it is loads with this package (or trust_remote_code=True where it is installed)"
    if path_languages(config):
        said += ", the one that it was adapted from may be exported"
    if why_not_dense(config) is not None:
        return said
    what = "group" if config.language_width is None else "language"
    return f"{said}, and --to dense --group G makes a plain dense model of one {what}"
