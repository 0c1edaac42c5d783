"""A mixture of another configuration from the tensors of one that is loaded."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from transformers.initialization import no_init_weights


def rebuilt(model: Any, config: Any, state: Mapping[str, Tensor]) -> Any:
    """Return a mixture of a configuration that holds `state`, on the device of `model` and in its dtype.

    Both are of one family. `model` stays as it is, and `state` may share its tensors: they are copied.
    """
    with no_init_weights():
        other = type(model)(config).to(model.dtype)
    other.load_state_dict(state)
    other.tie_weights()
    other.generation_config = model.generation_config
    return other.train(model.training).to(model.device)
