"""Losses of logits: value, residual, curvature, conjugate. They know targets and logits alone."""

from ufm.losses.crossentropy import CrossEntropy, conjugate, cross_entropy, margins, residual
from ufm.losses.laws import check_loss
from ufm.losses.loss import Curvature, Loss

__all__ = [
    "CrossEntropy",
    "Curvature",
    "Loss",
    "check_loss",
    "conjugate",
    "cross_entropy",
    "margins",
    "residual",
]
