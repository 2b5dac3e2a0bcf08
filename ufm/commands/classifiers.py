"""The classifier W that `ufm descend --fixed-classifier` selects."""

from pathlib import Path

import numpy as np

from ufm.check import Refused
from ufm.commands.files import matrix_of
from ufm.model.fixed import classifier
from ufm.model.problem import Problem
from ufm.theory.geometry import etf_classifier

NAMES = ("etf", "orthogonal")


def named(name: str, problem: Problem) -> np.ndarray:
    """W (K, d): a simplex ETF or orthogonal rows, of norm 1, or the matrix of a file.

    Raises:
        Refused: too few dimensions for the frame, no such file, a matrix that does not fit.
    """
    K, d = problem.K, problem.d
    if name == "etf":
        return classifier(problem, etf_classifier(K, d, dtype=np.float64))
    if name == "orthogonal":
        if d < K:
            raise Refused(
                f"got --fixed-classifier orthogonal with d={d} < K={K}; allowed: d >= K, since R^d "
                "holds at most d orthogonal rows"
            )
        return np.eye(K, d)
    if not Path(name).exists():
        raise Refused(
            f"got --fixed-classifier {name}; allowed: {', '.join(NAMES)}, or a file that holds W "
            "(K, d)"
        )
    return classifier(problem, matrix_of(Path(name)))
