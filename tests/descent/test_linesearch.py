"""The line search against that of optax, decision by decision, and where f is no number."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ufm.descent import linesearch

# Cubics and waves: of many depths, some without a minimum ahead, some that start near one.
COEFFICIENTS = np.random.default_rng(0).normal(size=(256, 5)) * [1, 3, 10, 3, 5]


def wave(coefficients, x):
    """A function of the tree x with many minima."""
    a, b, c, d, e = coefficients
    u, v = x["u"], x["v"]
    return jnp.sum(a * u**2 + b * jnp.sin(c * u)) + d * jnp.cos(v[0] * e) + v[0] ** 4 / 10


def of_optax(f, x, p):
    """(t, f, ∇f) of optax's search."""
    method = optax.scale_by_zoom_linesearch(linesearch.STEPS, initial_guess_strategy="one")
    value, grad = jax.value_and_grad(f)(x)
    _, state = method.update(p, method.init(x), x, value=value, grad=grad, value_fn=f)
    return state.learning_rate, state.value, state.grad


def ours(f, x, p):
    """(t, f, ∇f) of the search of this package."""
    evaluate = jax.value_and_grad(f)
    return linesearch.search(evaluate, x, p, *evaluate(x))


def test_the_search_ends_where_that_of_optax_does():
    def both(coefficients):
        def f(x):
            return wave(coefficients, x)

        x = {"u": coefficients[:2] / 4, "v": coefficients[2:3]}
        p = jax.tree.map(lambda g: -g, jax.grad(f)(x))
        return ours(f, x, p), of_optax(f, x, p)

    found, expected = jax.jit(jax.vmap(both))(COEFFICIENTS)
    # The same points but for the rounding of the interpolations, which a few zooms do not blow up.
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), found, expected)
    t = found[0]
    assert min(np.sum(t > 1), np.sum(t == 1), np.sum((t > 0.1) & (t < 1)), np.sum(t < 0.1)) > 5


def test_the_search_comes_back_from_where_f_is_no_number():
    def barrier(x):
        return -jnp.log(1 - x) - x / 2  # NaN beyond 1; its minimum is at −1

    x, p = jnp.array(0.999), jnp.array(-1e4)
    t, value, grad = ours(barrier, x, p)
    assert 0 < t < 1
    assert value < barrier(x)
    assert jnp.isfinite(grad)
    t, value, grad = ours(lambda x: jnp.where(x == 0, x, jnp.nan), jnp.array(0.0), jnp.array(1.0))
    assert (t, value, grad) == (0, 0, 1)
