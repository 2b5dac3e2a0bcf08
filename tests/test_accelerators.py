"""The programs that users run, lowered for accelerators that are not at hand, and looked into.

`jax.export` lowers for any platform. What would only fail there shows in the module: operations
that only CPUs have, products at reduced precision, float64 in a program of float32.
"""

import re

import jax
import jax.numpy as jnp
import pytest

import ufm
from ufm import certificate
from ufm.critical import downhill, newton, solver
from ufm.descent import loop
from ufm.descent import run as runs
from ufm.hessian import curvature, eigenpairs
from ufm.linalg import lanczos
from ufm.metrics import measures
from ufm.model import quotient
from ufm.runtime import loops

PROBLEM = ufm.Problem(4, 6, 5, lam=5e-3)
PARAMS = ufm.init_params(0, PROBLEM, dtype=jnp.float32)
SPHERE = ufm.Problem(4, 6, 5, bias=False, features="sphere", loss="LogitAdjusted(scale=5)")
# Decompositions of small matrices, and marks of shardings: what each platform has of its own.
KNOWN = {
    "cuda": r"cusolver_\w+|cublas_\w+|cu_lu_pivots_to_permutation|Sharding",
    "tpu": r"Eigh|Qr|ProductOfElementaryHouseholderReflectors|LuDecomposition|Sharding|TopK",
}
METHODS = {
    "gd": {},
    "gd safe": {"learning_rate": "safe"},
    "heavy_ball": {},
    "nesterov": {},
    "adam": {},
    "lbfgs": {},
    "sgd": {"batch_size": 4},
}


def descent(name, problem=PROBLEM):
    """A recorded trajectory: steps, records, certificate and metrics in one program."""
    asked = METHODS[name]
    method, hyper = runs.prepare(problem, 1.0, name.partition(" ")[0], **asked)
    key = jax.random.key(0) if asked.get("batch_size") else None
    limits = loop.Limits(
        jnp.int32(10),
        jnp.int32(5),
        jnp.float32(-jnp.inf),
        jnp.float32(-jnp.inf),
        jnp.asarray(False),
    )

    def program(problem, params):
        state = loop.start(problem, params, method, hyper, key)
        return loop.trajectory(problem, state, method, hyper, limits, 8)

    return program, (problem, ufm.init_params(0, problem, dtype=jnp.float32))


PROGRAMS = {
    **{name: (lambda name=name: descent(name)) for name in METHODS},
    "sphere": lambda: descent("heavy_ball", SPHERE),
    "certificate": lambda: (certificate.certify, (PROBLEM, PARAMS)),
    "gradient": lambda: (ufm.gradient, (PROBLEM, PARAMS)),
    "metrics": lambda: (lambda *x: measures.measure(*x, PROBLEM.labels), tuple(PARAMS)),
    "product": lambda: (curvature.product, (PROBLEM, PARAMS, PARAMS)),
    "mesh": lambda: (
        ufm.gradient,
        (PROBLEM, ufm.mesh.place(PROBLEM, PARAMS, ufm.mesh.over_samples(jax.devices()[:1]))),
    ),
}


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_holds_nothing_that_an_accelerator_lacks(name, platform, monkeypatch):
    monkeypatch.setitem(loops.STRIDE, "cpu", 16)  # as on an accelerator
    with jax.enable_x64(False):
        program, arguments = PROGRAMS[name]()
        exported = jax.export.export(jax.jit(program), platforms=[platform])(*arguments)
    text = looked_into(exported, platform)
    assert re.search(r"\bf64\b|xf64>", text) is None


def looked_into(exported, platform: str) -> str:
    """The module, which holds products, all exact ones, and no call that the platform lacks."""
    text = exported.mlir_module()
    calls = set(re.findall(r"custom_call @([\w.]+)", text))
    assert [x for x in calls if not re.fullmatch(KNOWN[platform], x)] == []
    products = re.findall(r"stablehlo\.dot_general [^\n]*", text)
    assert [x for x in products if "precision = [HIGHEST, HIGHEST]" not in x] == []
    assert products
    return text


def searched(problem, params):
    """The search of `hessian.extreme` off the orbit, from its model's own eigenvectors."""
    at, tangents = eigenpairs._prepared(problem, params)
    closed, key = eigenpairs.preconditioner(at), jax.random.key(0)
    operator = jax.tree_util.Partial(eigenpairs._image, at, tangents, jnp.ones(()))
    steer = jax.tree_util.Partial(eigenpairs._steer, problem, closed, tangents)
    start = eigenpairs._started(problem, closed, tangents, key, 1, 1 + lanczos.WIDTH)
    sizes = lanczos.plan(problem.size, 1, "smallest")
    return lanczos._solve(operator, steer, 1, sizes, start, key, 1.0, 1e-10, 1000)


def decomposed(problem, params):
    """The matrix of `hessian.extreme` for small problems."""
    at, _ = eigenpairs._prepared(problem, params)
    operator = jax.tree_util.Partial(eigenpairs._image, at, None, jnp.zeros(()))
    return lanczos._dense(operator, 1, 1, jnp.eye(problem.size))


# What is computed in float64 whatever the precision of a run.
IN_FLOAT64 = {
    "extreme": searched,
    "extreme of a matrix": decomposed,
    "solve: class means": quotient.restrict,
    "solve: descent": lambda *x: downhill.descend(*x, 10, 1e-8),
    "solve: descent in float32": lambda *x: downhill.in_float32(*x, 10),
    "solve in one": lambda *x: solver._directly(*x, 10),
    "solve: MINRES": newton.refine,
    "solve: Newton": newton.polish,
}


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
@pytest.mark.parametrize("name", IN_FLOAT64)
def test_curvature_and_critical_points_hold_nothing_that_an_accelerator_lacks(name, platform):
    with jax.enable_x64(True):
        params = ufm.init_params(0, PROBLEM, dtype=jnp.float64)
        program = jax.jit(IN_FLOAT64[name])
        looked_into(jax.export.export(program, platforms=[platform])(PROBLEM, params), platform)
