"""Losses of logits: value, residual, curvature, conjugate, as functions of logits and targets."""

from ufm.losses.adjusted import LogitAdjusted
from ufm.losses.binary import BinaryCrossEntropy
from ufm.losses.crossentropy import CrossEntropy, conjugate, cross_entropy, margins, residual
from ufm.losses.custom import FromValue
from ufm.losses.focal import Focal
from ufm.losses.laws import check_loss
from ufm.losses.loss import Curvature, Loss
from ufm.losses.squared import SquaredError

__all__ = [
    "BinaryCrossEntropy",
    "CrossEntropy",
    "Curvature",
    "Focal",
    "FromValue",
    "LogitAdjusted",
    "Loss",
    "SquaredError",
    "check_loss",
    "conjugate",
    "cross_entropy",
    "margins",
    "residual",
]
