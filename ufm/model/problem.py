"""The unconstrained feature model: classifier W, features H and bias b as free variables.

    f(W, H, b) = (1/N) Σ_i c_{y_i} ℓ(W h_i + b, y_i)
                 + (λ_W/2)‖W‖² + (λ_H/2) Σ_i ω_{y_i}‖h_i‖² + (λ_b/2)‖b‖²

with W ∈ R^{K×d}, H = [h_1 … h_N] ∈ R^{d×N}, b ∈ R^K (Zhu et al. 2021, arXiv 2105.02375, equation 4:
cross-entropy ℓ and c = ω = 1). Samples are grouped by class: y = (0, …, 0, 1, …, 1, …, K−1). With a
target matrix T (K, G) in place of labels they are grouped by its columns, with the loss ℓ(z; T_y);
"class" then means one of the G groups of samples with the same target.
"""

import functools
from collections.abc import Mapping
from dataclasses import MISSING, InitVar, dataclass, field, fields
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ufm import check
from ufm.check import MOST, Refused
from ufm.losses import names as losses
from ufm.losses.crossentropy import CrossEntropy
from ufm.metrics.features import balanced, grouped
from ufm.model.fields import (
    FEATURES,
    check_sphere,
    class_counts,
    class_weights,
    decays,
    default_decays,
    fixed_parts,
    target_matrix,
)
from ufm.runs import values


class Params(NamedTuple):
    """The free variables: W (K, d), H (d, N) with samples as columns, b (K,).

    Without a bias (`Problem(bias=False)`) b is an array of zeros, so that every formula that
    contains b still holds.
    """

    W: Any
    H: Any
    b: Any


DECAYS = ("lam_W", "lam_H", "lam_b")

# How a field of a problem is described in JSON: its types there, and whether JAX traces it. A field
# without these cannot be described, so that no file omits it unnoticed.
_COUNT: dict[str, Any] = {"json": int, "traced": False}
_COUNTS: dict[str, Any] = {"json": (int, list), "traced": False}
_DECAY: dict[str, Any] = {"json": (int, float), "traced": True}
_NEEDED: dict[str, Any] = _DECAY | {"needed": True}  # in a description, though lam may replace it
_FLAG: dict[str, Any] = {"json": bool, "traced": False}
# Fields added after the first version are described only if they differ from their defaults, so
# that older files remain equal to newer ones.
_LOSS: dict[str, Any] = {"json": str, "traced": True, "later": True}
_FEATURES: dict[str, Any] = {"json": str, "traced": False, "later": True}
_WEIGHTS: dict[str, Any] = {"json": (list, None), "traced": True, "later": True}
_TARGETS: dict[str, Any] = {"json": (list, None), "traced": True, "later": True, "matrix": True}
_PARTS: dict[str, Any] = {"json": list, "traced": False, "later": True}


@jax.tree_util.register_pytree_with_keys_class
@dataclass(frozen=True, eq=False)
class Problem:
    """One unconstrained feature model: its sizes (static), decays and weights (traced).

    Two problems of one shape share every compiled function; decays may be arrays, to be mapped
    over by `jax.vmap`.

    Args:
        K: number of classes, at least 2.
        d: width of the features, at least 1.
        n: samples per class, an int, or one count a class; equal counts are stored as an int. With
            targets: samples of each of their columns.
        lam_W: λ_W ≥ 0.
        lam_H: λ_H ≥ 0.
        lam_b: λ_b ≥ 0, 0 by default; ignored when `bias` is False.
        bias: False removes b from the model.
        loss: ℓ, a loss of `ufm.losses` or its text, such as "CrossEntropy".
        weights: c_k > 0, the weight of each class in the loss (cost-sensitive learning), K numbers;
            None takes c = 1.
        decay_weights: ω_k > 0, the weight of each class in the decay of the features, K numbers;
            None takes ω = 1. The layer-peeled model of Fang et al. 2021 (arXiv 2101.12699) has
            ω_k = 1/n_k.
        targets: T (K, G), a column for each group of samples, in place of labels: soft labels, sets
            of labels, mixtures or regression targets, as the loss allows. n, weights and
            decay_weights then have one entry for each of the G groups.
        features: "free"; "nonnegative": H ≥ 0, as behind a ReLU; "sphere": rows of W and features
            of norm 1, without decay or bias (`ufm.model.layers`, `ufm.model.sphere`).
        fixed: ("W",) fixes the classifier: W is part of params, no descent changes it, and
            (λ_W/2)‖W‖² is a constant of f, which is then convex in (H, b) for a convex loss (arXiv
            2203.09081). () fixes nothing.
        lam: λ for each of λ_W, λ_H and λ_b that is not given; not stored as a field.

    Raises:
        Refused: for sizes, decays or weights outside these ranges; no λ_W or λ_H.
    """

    K: int = field(metadata=_COUNT)
    d: int = field(metadata=_COUNT)
    n: Any = field(metadata=_COUNTS)  # int, or a tuple of K counts once stored
    lam_W: Any = field(default=None, metadata=_NEEDED)
    lam_H: Any = field(default=None, metadata=_NEEDED)
    lam_b: Any = field(default=None, metadata=_DECAY)
    bias: bool = field(default=True, metadata=_FLAG)
    loss: Any = field(default=CrossEntropy(), metadata=_LOSS)
    weights: Any = field(default=None, metadata=_WEIGHTS)
    decay_weights: Any = field(default=None, metadata=_WEIGHTS)
    targets: Any = field(default=None, metadata=_TARGETS)
    features: str = field(default="free", metadata=_FEATURES)
    fixed: Any = field(default=(), metadata=_PARTS)  # a tuple of names once stored
    lam: InitVar[Any] = None

    def __post_init__(self, lam):
        K = check.integer("K", self.K, 2, MOST, "a classifier needs two classes")
        d = check.integer("d", self.d, 1, MOST, "features need one dimension")
        object.__setattr__(self, "K", K)
        object.__setattr__(self, "d", d)
        object.__setattr__(self, "targets", target_matrix(self.targets, K))
        object.__setattr__(self, "n", class_counts(self.n, self.groups))
        object.__setattr__(self, "bias", check.flag("bias", self.bias))
        object.__setattr__(self, "fixed", fixed_parts(self.fixed))
        given = {name: getattr(self, name) for name in DECAYS}
        object.__setattr__(self, "features", check.choice("features", self.features, FEATURES))
        for name, value in decays(given, lam, default_decays(self.features)).items():
            object.__setattr__(self, name, value)
        object.__setattr__(self, "loss", losses.named(self.loss))
        if self.fixed and self.features != "free":
            raise Refused(
                f"got fixed={self.fixed!r} with features={self.features!r}; allowed: one of the "
                "two, since no certificate of both together is known here"
            )
        for name in ("weights", "decay_weights"):
            value = class_weights(name, getattr(self, name), self.groups)
            object.__setattr__(self, name, value)
        if self.features == "sphere":
            lams = {"lam_W": self.lam_W, "lam_H": self.lam_H}
            check_sphere(d, lams, self.bias, self.decay_weights)
        if not check.traced(self.targets):
            self.loss.check(K, self.targets)
        if self.N > MOST:
            raise Refused(f"got N={self.N} samples; allowed: at most 2^53, which float64 counts")

    @classmethod
    def from_features(
        cls, W, H=None, b=None, labels=None, lam_W=None, *, features=None, lam_H=None, lam_b=0.0,
        classes=None, ignore=None,
    ) -> tuple["Problem", Params]:  # fmt: skip
        """The problem whose point is the last layer of a trained network, and this point.

        Args:
            W, b: classifier (K, d), a row a class, and bias (K,), None for a model without one.
            H, features: the features, either H (d, N) or features (N, d).
            labels, classes, ignore: labels (N,), as `ufm.metrics.labels.samples` takes them. The
                samples are sorted by class, in the given order within a class, and counted.
            lam_W, lam_b: λ_W, λ_b ≥ 0 of (λ/2)‖·‖², as `weight_decay` of PyTorch's SGD.
            lam_H: λ_H ≥ 0; None takes λ_W‖W‖²/‖H‖², since λ_W‖W‖² = λ_H‖H‖² at critical points.

        Returns:
            (problem, params), params as `ufm.metrics.features.grouped` gives arrays.

        Raises:
            Refused: as `ufm.metrics.features.grouped`; no λ_W; ‖W‖ or ‖H‖ that gives no λ_H > 0.
        """
        given = grouped(W, H, b, labels, features, classes, ignore)
        lam_W = check.real("lam_W", lam_W, least=0)
        lam_H = balanced(lam_W, given.W, given.H) if lam_H is None else lam_H
        (K, d), n = given.W.shape, given.counts.tolist()
        problem = cls(K, d, n, lam_W, lam_H, lam_b, given.bias)
        return problem, Params(given.W, given.H, given.b)

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return all(_same(getattr(self, f.name), getattr(other, f.name)) for f in fields(self))

    def __hash__(self) -> int:
        return hash(tuple(_hashable(getattr(self, f.name)) for f in fields(self)))

    @property
    def groups(self) -> int:
        """G, the number of groups of samples with one target: K classes, or columns of targets."""
        return self.K if self.targets is None else self.targets.shape[-1]

    @property
    def counts(self) -> np.ndarray:
        """n_k, samples of each class, shape (G,)."""
        return np.broadcast_to(np.asarray(self.n, dtype=np.int64), (self.groups,))

    @property
    def N(self) -> int:
        """N = Σ_k n_k, the number of samples."""
        return self.groups * self.n if isinstance(self.n, int) else sum(self.n)

    @property
    def labels(self) -> np.ndarray:
        """Class of every sample, shape (N,), grouped: class k occupies n_k neighbouring columns.

        Raises:
            Refused: labels that do not fit into memory.
        """
        held = f"K={self.K}, N={self.N}: labels (N,)"
        check.fits(held, 4 * self.N + 12 * self.groups, "Lower n or K", machine=True)
        return np.repeat(np.arange(self.groups, dtype=np.int32), self.counts)

    def target(self, labels: Any) -> Any:
        """The targets of samples with these labels: the labels, or columns of `targets`."""
        if self.targets is None:
            return labels
        # NumPy's arrays do not take labels that are traced, as those of a block in a loop are.
        return (jnp.asarray(self.targets) if check.traced(labels) else self.targets)[:, labels]

    @property
    def balanced(self) -> bool:
        """Whether every class has the same number of samples."""
        return isinstance(self.n, int)

    @property
    def class_weights(self) -> np.ndarray:
        """w_k = c_k/N, the weight of the loss of one sample of class k, (G,)."""
        c = 1.0 if self.weights is None else np.asarray(self.weights, np.float64)
        return np.broadcast_to(c / self.N, (self.groups,))

    @property
    def class_decays(self) -> np.ndarray:
        """λ_H ω_k, the decay of the feature of one sample of class k, (G,)."""
        omega = 1.0 if self.decay_weights is None else np.asarray(self.decay_weights, np.float64)
        return np.broadcast_to(float(self.lam_H) * omega, (self.groups,))

    @property
    def uniform(self) -> bool:
        """Whether all classes are alike: one count, weights of 1, no target matrix."""
        given = (self.weights, self.decay_weights, self.targets)
        return self.balanced and all(x is None for x in given)

    @property
    def mu(self):
        """μ = √(λ_W λ_H), the weight of the nuclear norm ‖WH‖_* that the two decays amount to."""
        # Factor by factor: the product of two small decays would underflow.
        return self.lam_W**0.5 * self.lam_H**0.5

    @property
    def size(self) -> int:
        """Number of variables: Kd + dN, and K more with a bias; without Kd if W is fixed.

        On the sphere all entries count, although K + N fewer are free.
        """
        classifier = 0 if self.fixed else self.K * self.d
        return classifier + self.d * self.N + (self.K if self.bias else 0)

    def describe(self, whole: bool = False) -> dict[str, Any]:
        """Every field by its name, as JSON holds it; `from_description` reads it back.

        Args:
            whole: include the fields that may be omitted at their defaults, such as the loss.

        Raises:
            Refused: decays that are arrays or traced; a field of a subclass without a JSON type.
        """
        check.one_problem(self)
        found = {}
        for name, form in self.forms().items():
            value = getattr(self, name)
            if form == _WEIGHTS["json"] and value is not None:
                value = np.asarray(value, np.float64).tolist()
            value = list(value) if isinstance(value, tuple) else value
            value = losses.text_of(value) if name == "loss" else value
            found[name] = float(value) if form == _DECAY["json"] else value  # type: ignore[arg-type]
        late = {f.name: getattr(type(self), f.name) for f in fields(self) if "later" in f.metadata}
        return {
            name: x
            for name, x in found.items()
            if whole or name not in late or not _same(getattr(self, name), late[name])
        }

    @classmethod
    def from_description(cls, description: Any, where: str = "a description") -> "Problem":
        """The problem that `describe` described. A field with a default may be missing.

        Args:
            description: the parsed JSON.
            where: the file and the place in it, for the message.

        Raises:
            Refused: a field is missing, unknown, of a wrong type, or out of range.
        """
        values.expect(description, Mapping, where)
        forms = cls.forms()
        if unknown := sorted(description.keys() - forms.keys()):
            raise values.RecordError(
                f"{where} has the field {unknown[0]!r}, which a {cls.__name__} of this version of "
                "ufm lacks: read it with the version that wrote it"
            )
        needed = {f.name for f in fields(cls) if f.default is MISSING or "needed" in f.metadata}
        wanted = {name: form for name, form in forms.items() if name in needed | set(description)}
        values.expect(description, wanted, where)
        n = description["n"]
        n = n[0] if isinstance(n, list) and len(n) == 1 else n
        return cls(**{name: description[name] for name in wanted} | {"n": n})

    @classmethod
    def forms(cls) -> dict[str, Any]:
        """The types of every field in JSON.

        Raises:
            Refused: a field of a subclass that has none.
        """
        for f in fields(cls):
            if "json" not in f.metadata:
                raise Refused(
                    f"got a {cls.__name__} whose field {f.name!r} names no type in JSON; allowed: "
                    "fields with metadata 'json' and 'traced', as those of ufm.Problem"
                )
        return {f.name: f.metadata["json"] for f in fields(cls)}

    def tree_flatten_with_keys(self):
        """Decays, loss, weights and targets as leaves; all other fields as static data."""
        traced, static = _parts(type(self))  # type: ignore[arg-type]
        leaves = [
            # Weights as one leaf, not as K leaves.
            (jax.tree_util.GetAttrKey(name), np.array(x) if isinstance(x, tuple) else x)
            for name, x in ((name, getattr(self, name)) for name in traced)
        ]
        return leaves, tuple(getattr(self, name) for name in static)

    @classmethod
    def tree_unflatten(cls, static, leaves):
        """Rebuild without validation: leaves may be tracers or JAX's placeholders."""
        problem = object.__new__(cls)
        for names, found in zip(_parts(cls), (leaves, static), strict=True):  # type: ignore[arg-type]
            for name, value in zip(names, found, strict=True):
                object.__setattr__(problem, name, value)
        return problem


def _same(x: Any, y: Any) -> bool:
    """Whether two fields are equal, arrays entry by entry."""
    if isinstance(x, np.ndarray | jax.Array) or isinstance(y, np.ndarray | jax.Array):
        return x is not None and y is not None and bool(np.array_equal(x, y))
    return bool(x == y)


def _hashable(x: Any) -> Any:
    return np.asarray(x).tobytes() if isinstance(x, np.ndarray | jax.Array) else x


@functools.cache  # called at every call of a compiled function
def _parts(kind: Any) -> tuple[list[str], list[str]]:
    """Names of the fields that JAX traces, and of the others."""
    traced = [f.name for f in fields(kind) if f.metadata.get("traced")]
    return traced, [f.name for f in fields(kind) if f.name not in traced]


def require(problem: Any) -> None:
    """Refuse what is no problem.

    Raises:
        Refused: naming its type.
    """
    if not isinstance(problem, Problem):
        raise Refused(f"got a {type(problem).__name__} as problem; allowed: a ufm.Problem")


def check_problem(problem: Any) -> None:
    """Refuse anything but a single problem, with a number for each decay.

    Raises:
        Refused: another type, traced decays, decays that are arrays.
    """
    require(problem)
    check.one_problem(problem)
