"""Language-group mixtures of experts as real subclasses of the dense Hugging Face models.

Importing this package registers every `dmoe_<family>` with AutoConfig and AutoModelForCausalLM.
"""

from sprachbund.modeling.config import config_class, dense_config
from sprachbund.modeling.expand import expand, mixture_config
from sprachbund.modeling.gate import count_log_prob
from sprachbund.modeling.model import DmoeOutput, causal_lm_class, is_dmoe, register
from sprachbund.modeling.pairs import PairTable, pair_table
from sprachbund.modeling.parameters import ParameterCounts, count_parameters, layer_cost

__all__ = [
    "DmoeOutput",
    "PairTable",
    "ParameterCounts",
    "causal_lm_class",
    "config_class",
    "count_log_prob",
    "count_parameters",
    "dense_config",
    "expand",
    "is_dmoe",
    "layer_cost",
    "mixture_config",
    "pair_table",
]

register()
