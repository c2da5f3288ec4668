"""MTEB: tasks, the encoder as mteb knows models, and scores within a time budget. mteb itself is imported on use."""

from otherside.evaluation.model import MTEBModel, model_meta
from otherside.evaluation.run import Evaluation, Scores

__all__ = ["Evaluation", "MTEBModel", "Scores", "model_meta"]
