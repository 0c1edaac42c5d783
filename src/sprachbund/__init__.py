"""Group, then scale: language-group mixtures of experts for multilingual language models."""

__version__ = "0.1.0"
