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
from ufm.descent import loop
from ufm.descent import run as runs
from ufm.hessian import curvature
from ufm.metrics import measures

PROBLEM = ufm.Problem(4, 6, 5, lam=5e-3)
PARAMS = ufm.init_params(0, PROBLEM, dtype=jnp.float32)
SPHERE = ufm.Problem(4, 6, 5, bias=False, features="sphere", loss="LogitAdjusted(scale=5)")
# Decompositions of small matrices, and marks of shardings: what each platform has of its own.
KNOWN = {
    "cuda": r"cusolver_\w+|cublas_\w+|Sharding",
    "tpu": r"Eigh|Qr|ProductOfElementaryHouseholderReflectors|Sharding|TopK",
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
def test_a_program_holds_nothing_that_an_accelerator_lacks(name, platform):
    with jax.enable_x64(False):
        program, arguments = PROGRAMS[name]()
        exported = jax.export.export(jax.jit(program), platforms=[platform])(*arguments)
    text = exported.mlir_module()
    calls = set(re.findall(r"custom_call @([\w.]+)", text))
    assert [x for x in calls if not re.fullmatch(KNOWN[platform], x)] == []
    products = re.findall(r"stablehlo\.dot_general [^\n]*", text)
    assert [x for x in products if "precision = [HIGHEST, HIGHEST]" not in x] == []
    assert re.search(r"\bf64\b|xf64>", text) is None
    if name not in ("metrics",):
        assert products
