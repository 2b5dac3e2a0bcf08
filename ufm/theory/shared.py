"""What the closed forms share: claims, assumptions, the balance of W and H, the form of a point.

A function for an assumption returns None where the problem meets it; otherwise it returns the
assumption in words, with the values that the problem has, as claims and refusals show it.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp

from ufm import check
from ufm.losses import CrossEntropy
from ufm.model import layers
from ufm.model.problem import Params, Problem


class Claim(NamedTuple):
    """What is known of a landscape, and whether it holds for a problem.

    name: a short name.  statement: the claim in one sentence.
    fails: the assumptions that the problem does not meet, with its numbers; None if it meets all.
    source: where the claim is proved or proposed.
    status: "theorem", or "candidate" for a claim that computation supports and no known proof does.
    """

    name: str
    statement: str
    fails: str | None
    source: str
    status: str = "theorem"


def joined(*failed: str | None) -> str | None:
    """The assumptions that fail, each once, separated by semicolons; None if none fails."""
    reasons = "; ".join(x for x in failed if x is not None).split("; ")
    return "; ".join(dict.fromkeys(reasons)) or None


def plain(problem: Problem) -> bool:
    """Whether the loss is cross-entropy with labels, without smoothing."""
    loss = problem.loss
    return problem.targets is None and isinstance(loss, CrossEntropy) and loss.plain


def cross_entropy(problem: Problem) -> str | None:
    """Plain cross-entropy with labels."""
    if plain(problem):
        return None
    got = check.shown(problem.loss) if problem.targets is None else "targets"
    return f"plain cross-entropy with labels (got {got})"


def labels(problem: Problem) -> str | None:
    """No target matrix."""
    return None if problem.targets is None else "labels (got targets)"


def convex(problem: Problem) -> str | None:
    """A convex loss."""
    loss = problem.loss
    return None if loss.convex else f"a convex loss (got {type(loss).__name__})"


def free(problem: Problem) -> str | None:
    """Free features."""
    if layers.is_free(problem):
        return None
    return f"free features (got features={problem.features!r})"


def decays(problem: Problem) -> str | None:
    """λ_W, λ_H > 0."""
    if min(float(problem.lam_W), float(problem.lam_H)) > 0:
        return None
    return f"lam_W, lam_H > 0 (got lam_W={problem.lam_W}, lam_H={problem.lam_H})"


def wide(problem: Problem) -> str | None:
    """d ≥ K−1."""
    K, d = problem.K, problem.d
    return None if d >= K - 1 else f"d >= K-1 (got d={d}, K-1={K - 1})"


def equal(problem: Problem) -> str | None:
    """Equal counts and weights of all classes; what differs is named."""
    if not problem.balanced:
        return f"equal class counts (got n={problem.n})"
    return None if problem.uniform else "classes of one weight (got weights or decay_weights)"


def alike(problem: Problem) -> str | None:
    """`equal`, in short."""
    return None if problem.uniform else "equal classes of one weight"


def tilt(problem: Problem) -> float:
    """(λ_H/λ_W)^¼, by which W is scaled up and H down where λ_W‖W‖² = λ_H‖H‖²."""
    # Roots first: the quotient of two decays may overflow.
    return float(problem.lam_H) ** 0.25 / float(problem.lam_W) ** 0.25


def point(dtype: Any, *parts: Any) -> Params:
    """(W, H, b) as JAX arrays of a floating dtype; None takes JAX's default."""
    dtype = check.floating("dtype", dtype)
    return Params(*(jnp.asarray(x, dtype) for x in parts))
