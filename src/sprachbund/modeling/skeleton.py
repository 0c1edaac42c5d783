"""A model's names and shapes without its weights."""

from typing import Any

import torch
from transformers import AutoModelForCausalLM

from sprachbund.errors import InputError, brief
from sprachbund.modeling.ffn import family_of
from sprachbund.modeling.ffn_weights import FfnShape, ffn_shape_of
from sprachbund.modeling.model import inner_model


def skeleton(config: Any) -> Any:
    """Return the causal model of a configuration, dense or mixture, on the meta device: no memory, no weights.

    Raises InputError where the configuration describes none.
    """
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
    except (ValueError, KeyError, TypeError, AttributeError, ImportError, ArithmeticError, RuntimeError) as error:
        raise InputError(
            f"no causal language model can be built from this configuration of type {config.model_type!r} "
            f"({brief(error)}); give a decoder that transformers knows"
        ) from error
    model.tie_weights()
    return model


def dense_ffn_shape(config: Any, *, layer: int = 0) -> FfnShape:
    """Return the shape of the FFN in one layer of a dense configuration; raises InputError for unknown families."""
    family = family_of(config.model_type, config)
    layers = getattr(inner_model(skeleton(config)), family.layers)
    return ffn_shape_of(family, getattr(layers[layer], family.ffn))
