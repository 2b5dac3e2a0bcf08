"""What the features may be: nearest points, projected gradients, refusals in words."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from laws import PROBLEMS, random_params, slope

import ufm
from ufm.commands.shared import ModelFlags
from ufm.model import layers
from ufm.model.evaluation import evaluate
from ufm.model.fields import FEATURES
from ufm.model.problem import Problem

FREE = PROBLEMS["unequal-counts"]
BEHIND = dataclasses.replace(FREE, features="nonnegative")


def test_every_allowed_name_has_a_member():
    assert tuple(layers.MEMBERS) == FEATURES


def test_an_unknown_kind_of_features_is_refused():
    with pytest.raises(ufm.Refused, match="got features='relu'; allowed: 'free', 'nonnegative'"):
        dataclasses.replace(FREE, features="relu")


def test_the_field_is_static_and_described_where_it_is_not_the_default():
    assert BEHIND != FREE
    assert jax.tree.structure(BEHIND) != jax.tree.structure(FREE)
    assert "features" not in FREE.describe()
    assert BEHIND.describe()["features"] == "nonnegative"
    assert Problem.from_description(BEHIND.describe()) == BEHIND
    flags = ModelFlags(K=3, features="nonnegative")
    assert flags.problem().features == flags.config()["features"] == "nonnegative"
    assert "features" not in ModelFlags().config()


def test_of_free_features_nothing_is_computed():
    """The very arrays come back: no operation enters a compiled program."""
    params = random_params(FREE)
    assert layers.project(FREE, params) is params
    assert layers.slope(FREE, params, params) is params


def test_random_starts_are_absolute_values_of_the_free_ones():
    free, found = (ufm.init_params(3, problem, 0.2) for problem in (FREE, BEHIND))
    np.testing.assert_array_equal(found.H, np.abs(free.H))
    np.testing.assert_array_equal(found.W, free.W)


def test_the_projection_is_the_nearest_point():
    params = random_params(BEHIND, seed=1)
    found = layers.project(BEHIND, params)
    # Of a convex set: ⟨H − PH, X − PH⟩ ≤ 0 for each of its points X; equal for X = 2PH.
    away = params.H - found.H
    others = np.abs(np.random.default_rng(0).standard_normal((20, *found.H.shape)))
    assert np.all(np.sum(away * (others - found.H), axis=(1, 2)) <= 0)
    assert abs(float(jnp.vdot(away, found.H))) == 0


def test_the_projected_gradient_is_the_steepest_feasible_descent():
    """lim (P(H − t∇f) − H)/t = −slope, by a step so small that only h = 0 meets the border."""
    params = layers.project(BEHIND, random_params(BEHIND, seed=2))
    gradient = slope(FREE, params)
    found = layers.slope(BEHIND, params, gradient)
    t = 1e-9
    moved = layers.project(BEHIND, params._replace(H=params.H - t * gradient.H))
    # Exact up to the rounding of H, 1e-16, over t.
    np.testing.assert_allclose((params.H - moved.H) / t, found.H, atol=1e-6)
    assert float(jnp.linalg.norm(found.H)) < float(jnp.linalg.norm(gradient.H))
    np.testing.assert_array_equal(found.W, gradient.W)


@pytest.mark.parametrize("as_array", [np.asarray, jnp.asarray])
def test_negative_features_are_refused_with_their_number_and_the_worst(as_array):
    params = layers.project(BEHIND, random_params(BEHIND))
    H = np.array(params.H)
    H[0, :3] = (-1e-3, -2.5, -1e-300)
    spoilt = params._replace(H=H)
    spoilt = jax.tree.map(as_array, spoilt)
    words = r"3 negative entries in H of shape \(5, 12\), the most negative -2.5.*jnp.maximum"
    with pytest.raises(ufm.Refused, match=words):
        evaluate(BEHIND, spoilt)
    with pytest.raises(ufm.Refused, match=words):
        layers.check_feasible(BEHIND, spoilt)
    evaluate(FREE, spoilt)


def test_features_that_are_not_free_are_refused_by_the_name_of_the_function():
    with pytest.raises(ufm.Refused, match=r"got features='nonnegative' in hessian\.spectrum"):
        layers.require_free(BEHIND, "hessian.spectrum")
    with pytest.raises(ufm.Refused, match="got a int as problem"):
        layers.require_free(3, "hessian.spectrum")
    layers.require_free(FREE, "hessian.spectrum")
