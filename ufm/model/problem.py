"""The unconstrained feature model: classifier W, features H and bias b as free variables.

    f(W, H, b) = (1/N) Σ_i ℓ(W h_i + b, y_i) + (λ_W/2)‖W‖² + (λ_H/2)‖H‖² + (λ_b/2)‖b‖²

with cross-entropy ℓ, W ∈ R^{K×d}, H = [h_1 … h_N] ∈ R^{d×N}, b ∈ R^K (Zhu et al. 2021,
arXiv 2105.02375, equation 4). Samples are grouped by class: y = (0, …, 0, 1, …, 1, …, K−1).
"""

import functools
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ufm import check
from ufm.check import MOST, Refused
from ufm.metrics.features import balanced, grouped
from ufm.runs import values


class Params(NamedTuple):
    """The free variables: W (K, d), H (d, N) with samples as columns, b (K,).

    Without a bias (`Problem(bias=False)`) b is an array of zeros, so that every formula that
    contains b still holds.
    """

    W: Any
    H: Any
    b: Any


# How a field of a problem is described in JSON: its types there, and whether JAX traces it. A field
# without one of these cannot be described, so that no file drops it unnoticed.
_COUNT: dict[str, Any] = {"json": int, "traced": False}
_COUNTS: dict[str, Any] = {"json": (int, list), "traced": False}
_DECAY: dict[str, Any] = {"json": (int, float), "traced": True}
_FLAG: dict[str, Any] = {"json": bool, "traced": False}


@jax.tree_util.register_pytree_with_keys_class
@dataclass(frozen=True)
class Problem:
    """One unconstrained feature model: its sizes (static) and its decays (traced).

    Two problems of one shape share every compiled function; decays may be arrays, to be mapped
    over by `jax.vmap`.

    Args:
        K: number of classes, at least 2.
        d: width of the features, at least 1.
        n: samples per class, an int, or one count a class; equal counts are stored as an int.
        lam_W: λ_W ≥ 0.
        lam_H: λ_H ≥ 0.
        lam_b: λ_b ≥ 0; not used when `bias` is False.
        bias: False removes b from the model.

    Raises:
        Refused: for sizes or decays outside these ranges.
    """

    K: int = field(metadata=_COUNT)
    d: int = field(metadata=_COUNT)
    n: Any = field(metadata=_COUNTS)  # int, or a tuple of K counts once stored
    lam_W: Any = field(metadata=_DECAY)
    lam_H: Any = field(metadata=_DECAY)
    lam_b: Any = field(default=0.0, metadata=_DECAY)
    bias: bool = field(default=True, metadata=_FLAG)

    def __post_init__(self):
        K = check.integer("K", self.K, 2, MOST, "a classifier needs two classes")
        d = check.integer("d", self.d, 1, MOST, "features need one dimension")
        object.__setattr__(self, "K", K)
        object.__setattr__(self, "d", d)
        object.__setattr__(self, "n", check.class_counts(self.n, K))
        object.__setattr__(self, "bias", check.flag("bias", self.bias))
        for name in ("lam_W", "lam_H", "lam_b"):
            object.__setattr__(self, name, check.decay(name, getattr(self, name)))
        if self.N > MOST:
            raise Refused(f"got N={self.N} samples; allowed: at most 2^53, which float64 counts")

    @classmethod
    def from_features(
        cls, W, H=None, b=None, labels=None, lam_W=None, *, features=None, lam_H=None, lam_b=0.0,
        classes=None, ignore=None,
    ) -> tuple["Problem", Params]:  # fmt: skip
        """The problem that a trained network's last layer stands for, and its point there.

        Args:
            W, b: classifier (K, d), a row a class, and bias (K,), None for a model without one.
            H, features: the features, as H (d, N) or in its place as features (N, d).
            labels, classes, ignore: labels (N,), as `ufm.metrics.labels.samples` takes them. The
                samples are sorted by class, in the given order within a class, and counted.
            lam_W, lam_b: λ_W, λ_b ≥ 0: of (λ/2)‖W‖², as `weight_decay` of PyTorch's SGD.
            lam_H: λ_H ≥ 0; None takes λ_W‖W‖²/‖H‖², since λ_W‖W‖² = λ_H‖H‖² at critical points.

        Returns:
            (problem, params), params as `ufm.metrics.features.grouped` gives arrays.

        Raises:
            Refused: what `ufm.metrics.features.grouped` refuses; no λ_W; no λ_H > 0 in balance.
        """
        given = grouped(W, H, b, labels, features, classes, ignore)
        lam_W = check.real("lam_W", lam_W, least=0)
        lam_H = balanced(lam_W, given.W, given.H) if lam_H is None else lam_H
        (K, d), n = given.W.shape, given.counts.tolist()
        problem = cls(K, d, n, lam_W, lam_H, lam_b, given.bias)
        return problem, Params(given.W, given.H, given.b)

    @property
    def counts(self) -> np.ndarray:
        """n_k, samples of each class, shape (K,)."""
        return np.broadcast_to(np.asarray(self.n, dtype=np.int64), (self.K,))

    @property
    def N(self) -> int:
        """N = Σ_k n_k, samples in all."""
        return self.K * self.n if isinstance(self.n, int) else sum(self.n)

    @property
    def labels(self) -> np.ndarray:
        """Class of every sample, shape (N,), grouped: class k occupies n_k neighbouring columns.

        Raises:
            Refused: labels that do not fit into memory.
        """
        held = f"K={self.K}, N={self.N}: labels (N,)"
        check.fits(held, 4 * self.N + 12 * self.K, "Lower n or K", machine=True)
        return np.repeat(np.arange(self.K, dtype=np.int32), self.counts)

    @property
    def balanced(self) -> bool:
        """Whether every class has the same number of samples."""
        return isinstance(self.n, int)

    @property
    def mu(self):
        """μ = √(λ_W λ_H), the weight of the nuclear norm ‖WH‖_* that the two decays amount to."""
        # Factor by factor: the product of two small decays would underflow.
        return self.lam_W**0.5 * self.lam_H**0.5

    @property
    def size(self) -> int:
        """Number of free variables: Kd + dN, and K more with a bias."""
        return self.K * self.d + self.d * self.N + (self.K if self.bias else 0)

    def describe(self) -> dict[str, Any]:
        """Every field by its name, as JSON holds it; `from_description` reads it back.

        Raises:
            Refused: decays that are arrays or traced; a field, of a subclass, that has no form.
        """
        check.one_problem(self)
        found = {}
        for name, form in self.forms().items():
            value = getattr(self, name)
            value = list(value) if isinstance(value, tuple) else value
            found[name] = float(value) if form == _DECAY["json"] else value  # type: ignore[arg-type]
        return found

    @classmethod
    def from_description(cls, description: Any, where: str = "a description") -> "Problem":
        """The problem that `describe` described. A field with a default may be missing.

        Args:
            description: JSON as it was read.
            where: the file and the place in it, for the message.

        Raises:
            Refused: a field is missing, unknown, of a wrong type, or makes no sense.
        """
        values.expect(description, Mapping, where)
        forms = cls.forms()
        if unknown := sorted(description.keys() - forms.keys()):
            raise values.RecordError(
                f"{where} has the field {unknown[0]!r}, which a {cls.__name__} of this version of "
                "ufm lacks: read it with the version that wrote it"
            )
        needed = {f.name for f in fields(cls) if f.default is MISSING}
        wanted = {name: form for name, form in forms.items() if name in needed | set(description)}
        values.expect(description, wanted, where)
        n = description["n"]
        n = n[0] if isinstance(n, list) and len(n) == 1 else n
        return cls(**{name: description[name] for name in wanted} | {"n": n})

    @classmethod
    def forms(cls) -> dict[str, Any]:
        """The types of every field in JSON.

        Raises:
            Refused: a field, of a subclass, that names none.
        """
        for f in fields(cls):
            if "json" not in f.metadata:
                raise Refused(
                    f"got a {cls.__name__} whose field {f.name!r} names no type in JSON; allowed: "
                    "fields with metadata 'json' and 'traced', as those of ufm.Problem"
                )
        return {f.name: f.metadata["json"] for f in fields(cls)}

    def tree_flatten_with_keys(self):
        """Decays are the leaves; all else travels as static data."""
        traced, static = _parts(type(self))  # type: ignore[arg-type]
        leaves = [(jax.tree_util.GetAttrKey(name), getattr(self, name)) for name in traced]
        return leaves, tuple(getattr(self, name) for name in static)

    @classmethod
    def tree_unflatten(cls, static, leaves):
        """Rebuild without validation: leaves may be tracers or JAX's placeholders."""
        problem = object.__new__(cls)
        for names, found in zip(_parts(cls), (leaves, static), strict=True):  # type: ignore[arg-type]
            for name, value in zip(names, found, strict=True):
                object.__setattr__(problem, name, value)
        return problem


@functools.cache  # every call of a compiled function asks
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


def check_types(problem: Any, params: Any) -> None:
    """Refuse what is no problem, or no params, such as the two in the wrong order.

    Raises:
        Refused: naming the types.
    """
    require(problem)
    if not isinstance(params, Params):
        raise Refused(
            f"got a {type(params).__name__} as params; allowed: ufm.Params(W, H, b), as "
            "ufm.init_params makes them"
        )


def check_params(problem: Problem, params: Params) -> None:
    """Refuse params whose shapes or dtypes do not fit the problem; works on tracers too.

    Raises:
        Refused: a shape differs from W (K, d), H (d, N), b (K,);
            an entry is no array of floats, or dtypes are mixed.
    """
    check_types(problem, params)
    K, d, N = problem.K, problem.d, problem.N
    dtypes = set()
    for name, value, shape in zip("WHb", params, ((K, d), (d, N), (K,)), strict=True):
        if not _is_floating(value):
            got = getattr(value, "dtype", type(value).__name__)
            raise Refused(
                f"got {name} of {got}; allowed: a real floating array of NumPy or JAX"
                f"{check.array_hint(name, value)}"
            )
        if value.shape != shape:
            raise Refused(
                f"got {name} with shape {value.shape}; this problem (K={K}, d={d}, N={N}) needs "
                f"{shape}" + (": columns of H are samples" if name == "H" else "")
            )
        dtypes.add(jnp.dtype(value.dtype))
    if len(dtypes) > 1:
        raise Refused(
            f"got mixed dtypes {sorted(map(str, dtypes))} in params; cast W, H and b to one, for "
            "example with jax.tree.map(lambda x: x.astype(jnp.float64), params)"
        )


def _is_floating(value: Any) -> bool:
    if not isinstance(value, np.ndarray | jax.Array) or isinstance(value, np.ma.MaskedArray):
        return False
    return jnp.issubdtype(value.dtype, jnp.floating)


def check_precision(params: Params) -> None:
    """Refuse params in a precision that nothing is computed in: LAPACK knows these two only.

    Raises:
        Refused: naming the dtype.
    """
    dtype = params.W.dtype
    if dtype not in (np.float32, np.float64):
        raise Refused(
            f"got params in {dtype}; allowed: float32 or float64, the precision of what is "
            "computed; cast them, for example with jax.tree.map(lambda x: "
            "x.astype(numpy.float32), params)"
        )


def in_float64(params: Params) -> Params:
    """The point in JAX arrays of float64, from floating arrays of any width and byte order."""
    return jax.tree.map(
        lambda x: jnp.asarray(
            np.asarray(x, np.float64) if isinstance(x, np.ndarray) else x, jnp.float64
        ),
        params,
    )


def check_point(problem: Problem, params: Params) -> None:
    """Refuse what is no concrete point of one problem: for what runs on the host.

    Raises:
        Refused: other types, traced values, decays that are arrays, params that do not fit, entries
            that are not finite.
    """
    check_types(problem, params)
    if check.traced(problem, params):
        raise Refused("got traced values: this runs on the host; call it outside jit and vmap")
    check.one_problem(problem)
    check_params(problem, params)
    check_finite(params)


def check_problem(problem: Any) -> None:
    """Refuse what is no single problem with a number for each decay.

    Raises:
        Refused: another type, traced decays, decays that are arrays.
    """
    require(problem)
    check.one_problem(problem)


def check_finite(params: Params) -> None:
    """Refuse NaN and infinities in concrete params; tracers pass.

    Raises:
        Refused: naming the array and how many of its entries are not finite.
    """
    for name, value in zip("WHb", params, strict=True):
        if isinstance(value, jax.core.Tracer):
            continue
        xp = np if isinstance(value, np.ndarray) else jnp
        bad = int(xp.sum(~xp.isfinite(value)))
        if bad:
            raise Refused(
                f"got {bad} non-finite entries in {name} of shape {value.shape}; allowed: finite "
                "numbers. Look for a diverged run, or for NaN in the features that were loaded"
            )


def init_params(key: Array, problem: Problem, scale: float = 0.1, dtype=None) -> Params:
    """Entries of W and H drawn from N(0, scale²), b = 0.

    Args:
        key: a JAX PRNG key, or an integer seed.
        problem: gives the shapes.
        scale: standard deviation, ≥ 0.
        dtype: floating dtype; None takes JAX's default (float64 once x64 is switched on).

    Raises:
        Refused: a scale that is negative or not finite, a key that is none, a dtype that is not
            floating, sizes beyond the memory there is.
    """
    require(problem)
    if not check.traced(scale):
        scale = check.real("scale", scale, least=0)
    dtype = check.floating("dtype", dtype)
    check_memory(problem, dtype.itemsize)
    key_W, key_H = jax.random.split(check.key(key))
    W = scale * jax.random.normal(key_W, (problem.K, problem.d), dtype)
    H = scale * jax.random.normal(key_H, (problem.d, problem.N), dtype)
    return Params(W, H, jnp.zeros(problem.K, dtype))


def check_memory(problem: Problem, itemsize: int, copies: int = 1, records: bool = False) -> None:
    """Refuse sizes whose params do not fit into memory, before any array is made.

    Args:
        problem: gives the sizes.
        itemsize: bytes of a number.
        copies: how often all of the params are held at a time.
        records: whether NC1–NC4 and the certificate are computed, from matrices K × K.

    Raises:
        Refused: naming the bytes.
    """
    K, d, N = problem.K, problem.d, problem.N
    times = f" {copies} times" if copies > 1 else ""
    grams = 3 * K**2 if records else 0  # WWᵀ, MᵀM and WM, at the least
    what = f", and three matrices {K} × {K}" if records else ""
    check.fits(
        f"K={K}, d={d}, N={N}: W (K, d), H (d, N) and b (K,) held{times}{what}",
        itemsize * (copies * (K * d + d * N + K) + grams),
        "Lower n, d or K (a balanced problem's critical points are those of n = 1 with λ_H → nλ_H)",
    )
