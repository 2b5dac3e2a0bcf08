"""`ufm theory`: the global minimum and its curvature in closed form."""

import math
from dataclasses import dataclass, field
from typing import Annotated

import tyro

from ufm import minimum, theory
from ufm.commands.shared import Model, show


@dataclass(frozen=True)
class Theory:
    """Print the global minimum (Zhu et al. 2021, theorem 3.1) and its curvature in closed form.

    Needs balanced classes, d >= K-1 and positive decays.

    Example: ufm theory --K 10 --d 512 --n 5000 --lam-W 5e-4 --lam-H 1e-7
    """

    model: Annotated[Model, tyro.conf.OmitArgPrefixes] = field(default_factory=Model)
    json: bool = False
    """print JSON for machines instead of a table"""

    def act(self) -> int:
        """Print it; refuses problems outside the theorem."""
        problem = self.model.problem()
        norms, spectrum = theory.norms(problem), theory.hessian_spectrum(problem)
        fastest = theory.optimal_step(problem)
        # Exact, since neither factor alone need be within the range of float64.
        threshold = 1 - minimum.below_threshold(problem, problem.lam_W, problem.lam_H)
        rows = {
            "collapsed to the origin (K² n λ_W λ_H ≥ 1)": theory.is_collapsed(problem),
            "K² n λ_W λ_H": float(threshold) if threshold < 2**1023 else math.inf,
            "global value f* (nats)": theory.global_value(problem),
            "margin t": theory.margin(problem),
            "probability of each wrong class c": theory.wrong_probability(problem),
            "‖W‖": norms.W,
            "‖H‖": norms.H,
            "largest eigenvalue of ∇²f": spectrum.eigenvalues[-1],
            "distinct eigenvalues": len(spectrum.eigenvalues),
            "condition number off the orbit": theory.condition_number(problem),
            "step of the fastest gradient descent": fastest,
            "its factor a step": theory.gd_rate(problem, fastest),
        }
        names = (
            "is_collapsed", "threshold", "value", "margin", "wrong_probability", "W", "H",
            "largest_eigenvalue", "distinct_eigenvalues", "condition_number", "optimal_step",
            "gd_rate",
        )  # fmt: skip
        show("Global minimum in closed form", rows, names, self.json)
        return 0
