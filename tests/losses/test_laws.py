"""`check_loss` accepts the losses of the package and refuses those that break a law; their text."""

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference

import ufm
from ufm.losses import CrossEntropy, Loss, check_loss, names


@pytest.mark.parametrize("K", [2, 3, 10, 33])
def test_cross_entropy_meets_every_law(K):
    errors = check_loss(CrossEntropy(), K, exact=reference.exact_cross_entropy, seed=K)
    assert all(0 <= error <= 1 for error in errors)


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
    "smoothness": {"smoothness": 0.4},
    "residual_bound": {"residual_bound": lambda _, value: value / 8},
    "moved": {"moved": lambda *x: 0.1 * x[-1]},
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
    for loss in (CrossEntropy(),):
        assert isinstance(loss, Loss)
        assert names.named(names.text_of(loss)) == loss
        assert names.named(f"  {names.text_of(loss)} ") == loss
    assert ufm.Problem(3, 4, 2, 1e-3, 1e-3, loss="CrossEntropy").loss == CrossEntropy()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("crossentropy", "Did you mean 'CrossEntropy'"),
        ("CrossEntropy(smooth=1)", "smooth=1"),
        ("CrossEntropy(smoothing)", "smoothing"),
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
