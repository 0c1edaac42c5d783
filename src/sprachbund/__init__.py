"""Group, then scale: language-group mixtures of experts for multilingual language models."""

from typing import Any

__version__ = "0.1.0"
__all__ = ["__version__", "expand"]


def __getattr__(name: str) -> Any:
    """Import what needs torch only when it is used (PEP 562): the command line answers in under a second."""
    if name == "expand":
        from sprachbund.modeling import expand

        return expand
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
