"""How alike two languages are to a model or by their text, and which layers they change: the probe.

A source makes a `Signal` of each language; `similarity_of` compares the signals of all.
"""

from sprachbund.similarity.compare import STEPWISE, by_repeat, resampled, similarity_by_layer, similarity_of
from sprachbund.similarity.counts import count_characters, count_tokens
from sprachbund.similarity.deviation import FineTuning, probe_language
from sprachbund.similarity.gradient import measure_gradient
from sprachbund.similarity.representation import measure_representation
from sprachbund.similarity.signal import LanguageProbe, Signal, Sketches, load_probe, probe_bytes, save_probe
from sprachbund.similarity.sketch import CountSketch

__all__ = [
    "STEPWISE",
    "CountSketch",
    "FineTuning",
    "LanguageProbe",
    "Signal",
    "Sketches",
    "by_repeat",
    "count_characters",
    "count_tokens",
    "load_probe",
    "measure_gradient",
    "measure_representation",
    "probe_bytes",
    "probe_language",
    "resampled",
    "save_probe",
    "similarity_by_layer",
    "similarity_of",
]
