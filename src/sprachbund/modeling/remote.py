"""Checkpoints that load without an import line: `trust_remote_code=True` finds our classes in the installed package.

A saved model holds a few lines of code, named in its configuration's `auto_map`, which hand out this package's classes.
transformers would copy the source of classes that it loaded so into the next checkpoint; ours decline
(`register_for_auto_class`), since the classes are made on demand and their source is not one file.
"""

from pathlib import Path
from typing import Any

from sprachbund.files import write_text
from sprachbund.modeling.config import causal_lm_name

MODULE = "modeling_dmoe"
SOURCE = '''"""The classes of this checkpoint are those of the package `sprachbund` (pip install sprachbund)."""

from sprachbund.modeling import model


def __getattr__(name):
    return getattr(model, name)
'''


def auto_map(config: Any) -> dict[str, str]:
    """Return the `auto_map` of a mixture's configuration: which class transformers' auto classes are to load."""
    return {
        "AutoConfig": f"{MODULE}.{type(config).__name__}",
        "AutoModelForCausalLM": f"{MODULE}.{causal_lm_name(config.dense_model_type)}",
    }


def write_remote_code(folder: Path, config: Any) -> None:
    """Write the code that `auto_map` names into a saved model's folder, and the map into `config`."""
    config.auto_map = auto_map(config)
    write_text(folder / f"{MODULE}.py", SOURCE)
