"""Continued training of a dense model or a mixture: batches, objectives, stages, and the Trainer that runs them."""

from sprachbund.training.batches import TrainingBlocks
from sprachbund.training.stages import StagePlan, TrainingPlan
from sprachbund.training.trainer import TrainingResult, train

__all__ = ["StagePlan", "TrainingBlocks", "TrainingPlan", "TrainingResult", "train"]
