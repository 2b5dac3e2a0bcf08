"""A loop in strides takes as many steps, of the same arithmetic, as a plain one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ufm
from ufm.runtime import loops


@pytest.mark.parametrize("count", [0, 1, 15, 16, 17, 64, 100])
@pytest.mark.parametrize("stride", [1, 16])
def test_every_step_is_taken_once(count, stride, monkeypatch):
    monkeypatch.setitem(loops.STRIDE, "cpu", stride)

    def program(count):
        return loops.repeat(count, lambda x: (2 * x[0] + x[1], x[1] + 1), (0.0, 0))

    value, step = jax.jit(program)(jnp.int32(count))
    assert step == count
    expected = 0.0
    for t in range(count):
        expected = 2 * expected + t
    assert value == expected


def test_a_descent_in_strides_is_the_same_descent(monkeypatch):
    problem = ufm.Problem(4, 6, 5, lam=5e-3)
    params = ufm.init_params(0, problem)

    def run():
        jax.clear_caches()
        return ufm.descend(problem, params, "heavy_ball", steps=213, record_every=50)

    plain = run()
    monkeypatch.setitem(loops.STRIDE, "cpu", 16)
    strides = run()
    monkeypatch.undo()
    jax.clear_caches()
    assert strides.steps == plain.steps == 213
    assert strides.history["step"].tolist() == plain.history["step"].tolist()
    # The two copies of a step may be fused differently: rounding, not more.
    np.testing.assert_allclose(strides.history["loss"], plain.history["loss"], rtol=1e-13)
