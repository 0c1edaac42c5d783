"""The recipe: everything a run needs, validated before anything is loaded.

Every default names its source: [paper] is DMoE (Li et al., Findings of ACL 2025, and its released code),
[ours] is where we differ from it; docs/comparison.md has them side by side. Unknown keys are errors.
"""

from sprachbund.recipe.adapt import Adaptation
from sprachbund.recipe.compare import Compare
from sprachbund.recipe.part import Part
from sprachbund.recipe.plan import Groups, GroupSource, Layers, Probe, ProbeSource
from sprachbund.recipe.text import Base, Mixture, Scratch, Source, Splits
from sprachbund.recipe.training import Dense, Evaluate, Experts, Routing, Stage, Train
from sprachbund.recipe.whole import Recipe

__all__ = [
    "Adaptation",
    "Base",
    "Compare",
    "Dense",
    "Evaluate",
    "Experts",
    "GroupSource",
    "Groups",
    "Layers",
    "Mixture",
    "Part",
    "Probe",
    "ProbeSource",
    "Recipe",
    "Routing",
    "Scratch",
    "Source",
    "Splits",
    "Stage",
    "Train",
]
