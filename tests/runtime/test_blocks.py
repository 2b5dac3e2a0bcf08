"""Blocks of samples: the same numbers as all samples at once, in the memory of a block."""

import jax
import jax.numpy as jnp
import laws
import numpy as np
import pytest

from ufm import certificate
from ufm.descent.records import measurements
from ufm.metrics import measures as metrics
from ufm.model.objective import gradient, objective
from ufm.model.points import init_params
from ufm.model.problem import Params, Problem
from ufm.runtime import blocks

PROBLEMS = {
    "balanced": Problem(7, 5, 6, 1e-3, 2e-3, 3e-3),
    "unequal counts": Problem(4, 3, (3, 11, 5, 2), 1e-3, 2e-3, 3e-3),
    "free bias": Problem(3, 4, (9, 2, 4), 1e-2, 2e-2),
    "weights": Problem(
        3, 4, (9, 2, 4), 1e-2, 2e-2, 3e-3, weights=[1.0, 2.0, 0.5], decay_weights=[0.3, 1.0, 2.0]
    ),
    "no bias": Problem(3, 4, 7, 1e-2, 2e-2, bias=False),
}


def point(problem: Problem) -> Params:
    params = init_params(jax.random.key(1), problem, 0.7)
    return params._replace(b=jnp.linspace(-0.2, 0.3, problem.K))


@pytest.mark.parametrize("name", PROBLEMS)
def test_blocks_give_what_all_samples_at_once_give(name, monkeypatch):
    case, params = PROBLEMS[name], point(PROBLEMS[name])

    def everything(x):
        return {
            "gradient": gradient(case, x),
            "certificate": certificate.certify(case, x),
            "metrics": metrics.measure(*x, case.labels),
            "record": measurements(case, x),
        }

    # A new function each time: a compiled one would remember the blocks.
    at_once = jax.jit(lambda x: everything(x))(params)
    monkeypatch.setattr(blocks, "LIMIT", 8 * case.K * 5)  # five columns of logits at most
    assert blocks.count(case.K, params.H) > 1
    laws.assert_close(jax.jit(lambda x: everything(x))(params), at_once, atol=1e-13)


@pytest.mark.parametrize("what", [gradient, objective, certificate.certify])
def test_targets_in_numpy_are_cut_into_blocks(what, monkeypatch):
    targets = np.random.default_rng(0).dirichlet(np.ones(3), 21).T
    case = Problem(3, 4, 7, 1e-2, 2e-2, targets=targets)
    assert isinstance(case.targets, np.ndarray)
    at_once = jax.jit(lambda x: what(case, x))(point(case))
    monkeypatch.setattr(blocks, "LIMIT", 8 * case.K * 5)
    laws.assert_close(jax.jit(lambda x: what(case, x))(point(case)), at_once, atol=1e-13)


@pytest.mark.parametrize("counts", [3, tuple(1 + k % 4 for k in range(70))])
def test_beyond_64_classes_columns_are_gathered_and_the_measures_are_the_same(counts, monkeypatch):
    case = Problem(70, 3, counts, 1e-2, 1e-3, 1e-3)
    x = point(case)
    assert case.K > metrics.MANY
    expected = metrics.collapse(*(np.asarray(part) for part in x), case.labels)
    for limit in (blocks.LIMIT, 8 * case.K * 5):
        monkeypatch.setattr(blocks, "LIMIT", limit)
        found = jax.jit(lambda *x: metrics.measure(*x, case.labels))(*x)
        np.testing.assert_allclose(list(found), list(expected), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("what", [gradient, measurements, certificate.certify])
def test_memory_stays_near_that_of_the_features_however_many_classes(what, monkeypatch):
    case = Problem(64, 4, 200, 1e-3, 1e-3, 1e-3)  # logits are 16 times the features
    params = jax.eval_shape(lambda: init_params(jax.random.key(0), case))

    def temporary(limit):
        monkeypatch.setattr(blocks, "LIMIT", limit)
        program = jax.jit(lambda x: what(case, x)).lower(params).compile()
        return program.memory_analysis().temp_size_in_bytes

    features, logits = 8 * case.d * case.N, 8 * case.K * case.N
    assert temporary(2**40) > logits
    # Deviations, their squares and a gradient at most, and the block with its exponentials.
    assert temporary(logits // 50) < 3 * features + 10 * logits // 50


def test_on_a_mesh_every_device_cuts_its_own_samples():
    mesh = jax.sharding.AbstractMesh((2,), ("samples",))
    where = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None, None))
    spread = jax.ShapeDtypeStruct((3, 10**9), jnp.float32, sharding=where)
    alone = jax.ShapeDtypeStruct((3, 10**9), jnp.float32)
    seen = []
    jax.eval_shape(lambda *Hs: seen.extend(blocks.count(10, H) for H in Hs), spread, alone)
    assert seen == [-(-2 * 10**10 // blocks.LIMIT), -(-4 * 10**10 // blocks.LIMIT)]
