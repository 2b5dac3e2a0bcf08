"""`check_loss` accepts the losses of the package and refuses those that break a law; their text."""

import dataclasses
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference

import ufm
from ufm.losses import (
    BinaryCrossEntropy,
    CrossEntropy,
    Focal,
    FromValue,
    LogitAdjusted,
    Loss,
    SquaredError,
    check_loss,
    names,
)


@pytest.mark.parametrize("K", [2, 3, 10, 33])
def test_cross_entropy_meets_every_law(K):
    errors = check_loss(CrossEntropy(), K, exact=reference.exact_cross_entropy, seed=K)
    assert all(0 <= error <= 1 for error in errors)


def soft(generator, N):
    return generator.dirichlet(np.full(5, 0.5), N).T


def tags(generator, N):
    T = (generator.random((5, N)) < 0.4).astype(float)
    T[0] = np.where(T.sum(axis=0) == 0, 1, T[0])
    return T


def real(generator, N):
    return 3 * generator.standard_normal((5, N))


FAMILY = [
    (CrossEntropy(0.1), None),
    (CrossEntropy(1e-12), None),
    (CrossEntropy(), soft),
    (CrossEntropy(), tags),
    (CrossEntropy(0.2), soft),
    (SquaredError(), None),
    (SquaredError(5, 15), None),
    (SquaredError(), real),
    (BinaryCrossEntropy(), None),
    (BinaryCrossEntropy(), tags),
    (BinaryCrossEntropy(), soft),
    (Focal(0), None),
    (Focal(0.5), None),
    (Focal(2), None),
    (Focal(5), None),
    (LogitAdjusted(3), None),
    (LogitAdjusted([1, 2, 3, 0.5, 0.1], [0, 1, 2, -1, 3]), None),
    (LogitAdjusted(2, np.arange(25).reshape(5, 5) / 5), None),
]
NAMES = [f"{names.text_of(loss)[:40]} {t.__name__ if t else ''}" for loss, t in FAMILY]


@pytest.mark.parametrize(("loss", "targets"), FAMILY, ids=NAMES)
def test_every_loss_of_the_family_meets_every_law(loss, targets):
    errors = check_loss(loss, 5, targets)
    assert all(0 <= error <= 1 for name, error in errors._asdict().items() if name != "value")


@pytest.mark.parametrize("gamma", [0.5, 2.0, 5.0])
def test_the_conjugate_of_the_focal_loss_is_tight_where_its_hull_is(gamma):
    """ℓ(z) + ℓ*(∇ℓ) = ⟨∇ℓ, z⟩ at margins above 0, where φ is convex."""
    generator = np.random.default_rng(0)
    Z, t = generator.standard_normal((4, 60)), generator.integers(0, 4, 60)
    Z[t, np.arange(60)] += 5
    with jax.enable_x64(True):
        Z, loss = jnp.asarray(Z), Focal(gamma)
        R = loss.residual(Z, t)
        young = loss.value(Z, t) + loss.conjugate(R, t) - jnp.sum(R * Z, axis=0)
    np.testing.assert_allclose(young, 0, atol=1e-14)


def broken(**methods):
    """A cross-entropy in which some methods or constants are replaced."""
    return dataclass(frozen=True)(type("Broken", (CrossEntropy,), methods))()


MUTANTS = {
    "residual": {"residual": lambda self, Z, t: -CrossEntropy.residual(self, Z, t)},
    "curvature": {
        "curvature": lambda self, Z, t: CrossEntropy.curvature(self, 1.01 * Z, t),
    },
    "fenchel_young": {
        "conjugate": lambda self, R, t: CrossEntropy.conjugate(self, R, t) + 1e-9,
    },
    "smoothness": {"smoothness": lambda *_: 0.4},
    "residual_bound": {"residual_bound": lambda _, value, __=None: value / 8},
    "moved": {"moved": lambda *x: 0.1 * x[-1]},
    "rounding": {
        "residual_rounding": lambda *x: 0.1 * CrossEntropy.residual_rounding(*x),
    },
    "value": {
        "value": lambda self, Z, t: CrossEntropy.value(self, Z, t) * (1 + 1e-9),
    },
}


@pytest.mark.parametrize("law", MUTANTS)
def test_a_loss_that_breaks_a_law_is_refused_by_its_name(law):
    with pytest.raises(ufm.Refused, match=law):
        check_loss(broken(**MUTANTS[law]), exact=reference.exact_cross_entropy)


def test_a_loss_that_is_neither_convex_nor_invariant_must_not_say_so():
    def hollow(self, Z, t):
        return CrossEntropy.value(self, Z, t) - jnp.sum(Z**2, axis=0) / 8

    concave = {
        "value": hollow,
        "residual": lambda self, Z, t: CrossEntropy.residual(self, Z, t) - Z / 4,
    }
    with pytest.raises(ufm.Refused, match="law"):
        check_loss(broken(**concave))


def _huber(z, y):
    return jnp.sum(jnp.sqrt(1 + (z - jax.nn.one_hot(y, len(z))) ** 2) - 1)


def test_a_loss_known_by_its_value_alone_is_held_against_what_is_said_of_it():
    errors = check_loss(FromValue(_huber, convex=True, bound=1.0))
    assert max(errors[1:]) <= 1
    assert (errors.fenchel_young, errors.moved) == (0, 0)  # its conjugate is not known
    with pytest.raises(ufm.Refused, match="'null'"):
        check_loss(FromValue(_huber, convex=True, shift_invariant=True, bound=1.0))


def test_a_loss_that_overflows_is_refused():
    def naive(_, Z, t):
        own = jnp.sum(jnp.where(jnp.arange(len(Z))[:, None] == t, Z, 0), axis=0)
        return jnp.log(jnp.sum(jnp.exp(Z), axis=0)) - own

    with pytest.raises(ufm.Refused, match="value is not finite at logits"):
        check_loss(broken(value=naive))


def test_what_is_no_loss_is_refused_with_what_it_lacks():
    class Half:
        convex: ClassVar[bool] = True

        def value(self, Z, t):
            return Z[t]

    with pytest.raises(ufm.Refused, match=r"without .*residual.*curvature"):
        check_loss(Half())


def test_the_text_of_a_loss_is_read_back():
    for loss in (CrossEntropy(), *(loss for loss, _ in FAMILY)):
        assert isinstance(loss, Loss)
        assert names.named(names.text_of(loss)) == loss
        assert names.named(f"  {names.text_of(loss)} ") == loss
    assert ufm.Problem(3, 4, 2, 1e-3, 1e-3, loss="CrossEntropy").loss == CrossEntropy()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("crossentropy", "Did you mean 'CrossEntropy'"),
        ("MSE", "Did you mean 'SquaredError'"),
        ("CrossEntropy(smooth=1)", "smooth=1"),
        ("CrossEntropy(smoothing)", "smoothing"),
        ("CrossEntropy(smoothing=1)", "smoothing=1"),
        ("CrossEntropy(0.1)", "smoothing=number"),
        ("Focal(gamma=__import__('os'))", "allowed"),
        ("Focal(" * 3000, "allowed"),
        ("", "allowed"),
        (CrossEntropy, r"write CrossEntropy\(\)"),
        (3, "allowed"),
        (None, "allowed"),
        (np.array(["CrossEntropy"]), "allowed"),
    ],
)
def test_a_loss_that_is_none_is_refused(text, message):
    with pytest.raises(ufm.Refused, match=message):
        ufm.Problem(3, 4, 2, 1e-3, 1e-3, loss=text)


def test_an_array_of_losses_is_mapped_over_and_asked_nothing_else():
    several = np.array([0.0, 0.1])
    problem = ufm.Problem(3, 4, 2, lam=1e-2, loss=CrossEntropy(smoothing=several))
    params = ufm.init_params(0, problem)
    axes = jax.tree.map(lambda x: 0 if np.ndim(x) else None, problem)
    found = jax.vmap(ufm.objective, (axes, None))(problem, params)
    for smoothing, value in zip(several, found, strict=True):
        one = dataclasses.replace(problem, loss=CrossEntropy(smoothing=smoothing))
        assert value == pytest.approx(float(ufm.objective(one, params)), rel=1e-6)
    for ask in (ufm.certify, ufm.solve, ufm.hessian.verdict, partial(ufm.descend, steps=3)):
        with pytest.raises(ufm.Refused, match=r"smoothing with shape \(2,\); allowed: one number"):
            ask(problem, params)
    with pytest.raises(ufm.Refused, match=r"smoothing with shape"):
        ufm.theory.global_value(problem)
    with pytest.raises(ufm.Refused, match=r"gamma\[1\]=-1"):
        ufm.losses.Focal(gamma=np.array([1.0, -1.0]))
    with pytest.raises(ufm.Refused, match=r"smoothing=\[0.1, 0.2\]"):
        CrossEntropy(smoothing=[0.1, 0.2])


def test_a_loss_of_ones_own_runs_but_is_not_written_to_files():
    @jax.tree_util.register_dataclass
    @dataclass(frozen=True)
    class Doubled(CrossEntropy):
        """Twice the cross-entropy."""

        smoothness: ClassVar[float] = 1.0

        def value(self, Z, t):
            return 2 * super().value(Z, t)

        def residual(self, Z, t):
            return 2 * super().residual(Z, t)

    problem = ufm.Problem(3, 2, 2, 1e-3, 1e-3, loss=Doubled())
    plain = dataclasses.replace(problem, loss=CrossEntropy())
    params = ufm.init_params(0, problem)
    decay = float(sum(1e-3 / 2 * jnp.sum(x**2) for x in (params.W, params.H)))
    value = 2 * (float(ufm.objective(plain, params)) - decay) + decay
    assert float(ufm.objective(problem, params)) == pytest.approx(value, rel=1e-6)
    with pytest.raises(ufm.Refused, match="Doubled"):
        problem.describe()


@pytest.mark.parametrize(
    "loss", [SquaredError(2.0, 0.5), SquaredError(0.5), Focal(1.0), LogitAdjusted(2.0)]
)
def test_bounds_are_traceable_in_the_parameters_of_a_loss(loss):
    bounds = jax.jit(lambda loss, value: (loss.smoothness(), loss.residual_bound(value)))
    exact = loss.smoothness(), loss.residual_bound(0.3)
    np.testing.assert_allclose(bounds(loss, 0.3), exact, rtol=1e-6)
