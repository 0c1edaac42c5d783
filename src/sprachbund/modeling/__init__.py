"""Language-group mixtures of experts as real subclasses of the dense Hugging Face models.

Importing this package registers every `dmoe_<family>` with AutoConfig and AutoModelForCausalLM.
"""

from sprachbund.modeling.expand import expand
from sprachbund.modeling.gate import count_log_prob
from sprachbund.modeling.model import DmoeOutput, causal_lm_class, config_class, register
from sprachbund.modeling.parameters import ParameterCounts, count_parameters, layer_cost

__all__ = [
    "DmoeOutput",
    "ParameterCounts",
    "causal_lm_class",
    "config_class",
    "count_log_prob",
    "count_parameters",
    "expand",
    "layer_cost",
]

register()
