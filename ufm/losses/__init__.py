"""Losses of logits: value, residual, conjugate. They know targets and logits, no W and no H."""

from ufm.losses.softmax import conjugate, cross_entropy, margins, residual

__all__ = ["conjugate", "cross_entropy", "margins", "residual"]
