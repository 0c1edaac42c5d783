"""Perplexity and bits per byte under each routing, and what is made of them."""

from sprachbund.evaluation.metrics import build_metrics
from sprachbund.evaluation.perplexity import LanguageScores, TestText, score_language, test_text

__all__ = ["LanguageScores", "TestText", "build_metrics", "score_language", "test_text"]
