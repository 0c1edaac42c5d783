"""How alike two languages are to a model, and which of its layers they change: the probe."""

from sprachbund.similarity.deviation import LanguageProbe, deviation_similarity, load_probe, probe_language, save_probe
from sprachbund.similarity.sketch import CountSketch

__all__ = ["CountSketch", "LanguageProbe", "deviation_similarity", "load_probe", "probe_language", "save_probe"]
