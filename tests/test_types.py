"""Every public function takes its arguments or says in words which one makes no sense."""

import dataclasses
import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ufm
from ufm import critical, hessian, metrics, theory
from ufm.descent import optimizers
from ufm.descent import run as descent
from ufm.model import mesh, sphere
from ufm.report.studies import study
from ufm.theory import geometry

P = ufm.Problem(3, 4, 2, 5e-3, 5e-3, 1e-2)
BIASLESS = ufm.Problem(3, 4, (3, 2, 1), lam=5e-3, bias=False)
SQUARED = ufm.Problem(3, 4, (3, 2, 1), 1e-2, 1e-2, bias=False, loss="SquaredError")
HELD = ufm.Problem(3, 4, 2, 5e-3, 5e-3, 1e-2, fixed=("W",))
ODD = [None, 5, -1, "x", "", b"", [], {}, 1j, True, float("nan"), np.zeros(3), print]


@functools.cache
def point():
    return ufm.init_params(0, P)


@functools.cache
def critical_point():
    return ufm.solve(P, point()).params


@functools.cache
def swept():
    return ufm.sweep(ufm.Plan(ufm.Grid(K=3, d=4, n=2), steps=1), history=True)


def means():
    return np.eye(3, 4)


def means_of_a_frame():
    return geometry.etf_classifier(3, 4)


def samples():
    return np.asarray(point().H).T, P.labels


def listed(f):
    return lambda *arguments: list(f(*arguments))


# Function and sound arguments; every argument is replaced by everything odd in turn.
CALLS = {
    "Grid": (ufm.Grid, lambda: (3, 4, 2, 1e-3)),
    "Plan": (ufm.Plan, lambda: (ufm.Grid(), 5, 5, 1e-3)),
    "Problem": (ufm.Problem, lambda: (3, 4, 2, 1e-3, 1e-3, 1e-3, True)),
    "Problem.from_features": (ufm.Problem.from_features, lambda: (*point(), P.labels, 1e-3)),
    "certify": (ufm.certify, lambda: (P, point())),
    "descend": (functools.partial(ufm.descend, steps=1), lambda: (P, point(), "gd")),
    "gradient": (ufm.gradient, lambda: (P, point())),
    "host": (ufm.host, lambda: (lambda *_: 0.0,)),
    "init_params": (ufm.init_params, lambda: (0, P, 0.1)),
    "objective": (ufm.objective, lambda: (P, point())),
    "solve": (ufm.solve, lambda: (P, point())),
    "sweep": (ufm.sweep, lambda: (ufm.Plan(ufm.Grid(K=3, d=4, n=2), steps=1),)),
    "sweep history": (
        lambda history: ufm.sweep(ufm.Plan(ufm.Grid(K=3, d=4, n=2), steps=1), history=history),
        lambda: (False,),
    ),
    "studies.study": (study, lambda: (swept(), "step", "gap")),
    "sweeps.grouped": (ufm.sweeps.grouped, lambda: (swept(), "d")),
    "sweeps.history": (ufm.sweeps.history, lambda: (swept(), 0)),
    "descend record": (
        lambda record: ufm.descend(P, point(), "gd", steps=1, record=record),
        lambda: ({"index": "index"},),
    ),
    "descent.pack": (descent.pack, lambda: (ufm.descend(P, point(), "gd", steps=1),)),
    "geometry.etf_classifier": (geometry.etf_classifier, lambda: (3, 4)),
    "geometry.helmert": (geometry.helmert, lambda: (3,)),
    "geometry.orthonormal_frame": (geometry.orthonormal_frame, lambda: (0, 4, 2)),
    "geometry.simplex_etf": (geometry.simplex_etf, lambda: (3, 4)),
    "mesh.init_params": (mesh.init_params, lambda: (0, P, mesh.over_samples())),
    "mesh.over_samples": (mesh.over_samples, lambda: (jax.devices(),)),
    "mesh.place": (mesh.place, lambda: (P, point(), mesh.over_samples())),
    "mesh.shardings": (mesh.shardings, lambda: (P, mesh.over_samples())),
    "metrics.Accumulator": (metrics.Accumulator, lambda: (point().W, point().b)),
    "metrics.Accumulator.add": (
        lambda *batch: metrics.Accumulator(point().W).add(*batch), samples
    ),
    "metrics.collapse": (metrics.collapse, lambda: (*point(), P.labels)),
    "metrics.collapse of classes": (
        lambda mean, about, missing: metrics.collapse(
            *point(), P.labels, mean=mean, means=about, missing=missing
        ),
        lambda: ("class", means(), "skip"),
    ),
    "metrics.detail": (metrics.detail, lambda: (*point(), P.labels)),
    "metrics.alignment": (
        metrics.alignment, lambda: (means() + 1, means(), theory.geometry_of(P))
    ),
    "metrics.geometry": (metrics.geometry, lambda: (means() + 1, means(), "a frame")),
    "metrics.effective_rank": (metrics.effective_rank, lambda: samples()[:1]),
    "metrics.generalised": (metrics.generalised, lambda: (means() + 1, means())),
    "metrics.one_vs_rest": (metrics.one_vs_rest, lambda: (point().W,)),
    "metrics.ood_cosines": (metrics.ood_cosines, lambda: (means(), samples()[0])),
    "metrics.regression": (
        metrics.regression, lambda: (means(), samples()[0], samples()[0][:, :3])
    ),
    "optimizers.safe_step": (optimizers.safe_step, lambda: (P, 1.0)),
    "optimizers.curvature_bound": (optimizers.curvature_bound, lambda: (P, 1.0)),
    "hessian.dense": (hessian.dense, lambda: (P, point())),
    "hessian.density": (hessian.density, lambda: (P, point(), 0)),
    "hessian.extreme": (hessian.extreme, lambda: (P, point(), 1, "smallest")),
    "hessian.flatten": (hessian.flatten, lambda: (P, point())),
    "hessian.gauss_newton_product": (hessian.gauss_newton_product, lambda: (P, point(), point())),
    "hessian.inertia": (hessian.inertia, lambda: (P, point(), 0.0, 1e-6)),
    "hessian.inertia_of": (hessian.inertia_of, lambda: (theory.hessian_spectrum(P), 0.0, 1e-9)),
    "hessian.largest": (hessian.largest, lambda: (P, point())),
    "hessian.smallest": (hessian.smallest, lambda: (P, point())),
    "hessian.linearize": (hessian.linearize, lambda: (P, point())),
    "hessian.product": (hessian.product, lambda: (P, point(), point())),
    "hessian.spectrum": (hessian.spectrum, lambda: (P, critical_point(), 1e-9)),
    "hessian.unflatten": (hessian.unflatten, lambda: (P, jnp.zeros(P.size))),
    "hessian.verdict": (hessian.verdict, lambda: (P, critical_point())),
    "hessian.witness": (hessian.witness, lambda: (P, critical_point())),
    "critical.census": (functools.partial(critical.census, starts=2, rounds=1), lambda: (P, 0)),
    "critical.escape": (
        functools.partial(critical.escape, steps=3),
        lambda: (P, jax.tree.map(jnp.zeros_like, point()), 0, 1e-6),
    ),
    "critical.fingerprint": (critical.fingerprint, lambda: (P, point())),
    "critical.partitions": (listed(critical.partitions), lambda: (4,)),
    "critical.verify": (
        functools.partial(critical.verify, starts=2, rounds=1, escapes=0),
        lambda: (P, 0),
    ),
    **{
        f"theory.{name}": (getattr(theory, name), lambda: (P,))
        for name in (
            "check_assumptions", "condition_number", "geometry_of", "global_value",
            "hessian_spectrum", "is_collapsed", "margin", "norms", "optimal_step",
            "origin_spectrum", "wrong_probability", "certified_minimum", "separation", "merged",
            "seli", "seli_is_optimal",
        )
    },
    "theory.margins": (theory.margins, lambda: (behind_a_relu(P),)),
    "theory.switched_off": (theory.switched_off, lambda: (behind_a_relu(BIASLESS),)),
    "theory.least_free_eigenvalue": (theory.least_free_eigenvalue, lambda: (P, 0.1)),
    "theory.least_eigenvalue_bound": (theory.least_eigenvalue_bound, lambda: (P, 0.1)),
    "theory.claims": (theory.claims, lambda: (P,)),
    "theory.critical_points": (theory.critical_points, lambda: (SQUARED,)),
    "theory.code_minimum": (theory.code_minimum, lambda: (P,)),
    "theory.codes": (theory.codes, lambda: (4, 2, 0)),
    "theory.hardmax_margin": (theory.hardmax_margin, lambda: (means(),)),
    "theory.fixed_minimum": (theory.fixed_minimum, lambda: (HELD, means_of_a_frame())),
    "theory.gd_rate": (theory.gd_rate, lambda: (P, 0.1)),
    "theory.global_minimizer": (theory.global_minimizer, lambda: (P, 0)),
    "theory.global_minimizer of groups": (
        functools.partial(theory.global_minimizer, ufm.Problem(3, 4, (3, 2, 1), lam=1e-2)),
        lambda: (0,),
    ),
    "theory.global_minimizer of squares": (
        functools.partial(theory.global_minimizer, SQUARED), lambda: (0,)
    ),
    "theory.sphere_bound": (theory.sphere_bound, lambda: (np.eye(3), np.eye(3), 2.0)),
    "theory.sphere_value": (theory.sphere_value, lambda: (3, 2.0)),
    "theory.orbit_dimension": (theory.orbit_dimension, lambda: (P, 2)),
}  # fmt: skip
# Odd as it looks, it has a meaning there.
MEANINGFUL = {
    ("descend record", 0): [None, [], {}],
    ("host", 0): [print],
    ("metrics.collapse", 2): [None, [], np.zeros(3)],
    ("metrics.detail", 2): [None, np.zeros(3)],
    ("metrics.Accumulator", 1): [None, np.zeros(3)],
    ("metrics.collapse of classes", 1): [None],
    ("mesh.over_samples", 0): [None],
    ("hessian.inertia", 3): [None],
    ("hessian.inertia_of", 2): [None],
    ("hessian.spectrum", 2): [None],
    ("Plan", 2): [None],
    ("Plan", 3): [None],
    ("Problem.from_features", 2): [None, np.zeros(3)],
    ("theory.global_minimizer", 1): [None],
    ("theory.global_minimizer of groups", 0): [None],
    ("theory.global_minimizer of squares", 0): [None],
    # Arrays of decays, to be mapped over; an axis.
    ("Problem", 3): [np.zeros(3)],
    ("Problem", 4): [np.zeros(3)],
    ("Problem", 5): [np.zeros(3), None],
    ("Grid", 3): [np.zeros(3), None],
}


@pytest.mark.parametrize("name", CALLS)
def test_odd_arguments_are_refused_in_words(name):
    call, sound = CALLS[name]
    arguments = sound()
    for place in range(len(arguments)):
        others = [x for i, x in enumerate(arguments) if i != place]
        for odd in [*ODD, *others]:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", RuntimeWarning)
                try:
                    call(*arguments[:place], odd, *arguments[place + 1 :])
                except ufm.Refused as refused:
                    assert "got" in str(refused)  # noqa: PT017
                    continue
            # Taken: then the type is the right one.
            same = type(odd) is type(arguments[place]) or isinstance(odd, int | float)
            meant = any(
                odd is x or np.array_equal(odd, x) for x in MEANINGFUL.get((name, place), [])
            )
            assert same or meant, f"argument {place} took {odd!r}"


# What knows features that are not free, or asks nothing of them; all else refuses them.
KNOWN = {
    "critical.census", "critical.fingerprint", "hessian.inertia", "hessian.verdict", "solve",
    "certify", "descend",
    "gradient", "init_params", "objective", "mesh.init_params", "mesh.place", "mesh.shardings",
    "optimizers.safe_step", "optimizers.curvature_bound",
    "hessian.dense", "hessian.flatten", "hessian.gauss_newton_product", "hessian.linearize",
    "hessian.product", "hessian.unflatten", "theory.claims", "theory.global_minimizer",
    *(f"theory.{name}" for name in (
        "geometry_of", "global_value", "is_collapsed", "margin", "margins", "norms", "switched_off",
    )),
}  # fmt: skip


def behind_a_relu(x):
    """A problem with H ≥ 0, or a point of it; anything else as it is."""
    if isinstance(x, ufm.Problem):
        return dataclasses.replace(x, features="nonnegative")
    return x._replace(H=jnp.abs(x.H)) if isinstance(x, ufm.Params) else x


@pytest.mark.parametrize("name", CALLS)
def test_every_function_knows_features_that_are_not_free_or_refuses_them(name):
    call, sound = CALLS[name]
    arguments = sound()
    if not any(isinstance(x, ufm.Problem) for x in arguments):
        return
    if any(isinstance(x, ufm.Problem) and x.fixed for x in arguments):
        return  # the two are refused together
    arguments = [behind_a_relu(x) for x in arguments]
    if name in KNOWN:
        call(*arguments)
        return
    with pytest.raises(ufm.Refused, match="features='nonnegative'"):
        call(*arguments)


# What knows unit vectors, or asks nothing of them.
ON_THE_SPHERE = KNOWN - {
    "critical.census", "critical.fingerprint", "optimizers.safe_step",
    "optimizers.curvature_bound", "theory.margins", "theory.switched_off",
} | {"hessian.spectrum", "theory.code_minimum"}  # fmt: skip


def on_the_sphere(x):
    """A problem of unit vectors, or a point of it; anything else as it is."""
    if isinstance(x, ufm.Problem):
        given = {"lam_W": 0, "lam_H": 0, "bias": False, "decay_weights": None}
        return dataclasses.replace(x, features="sphere", **given)
    return sphere.project(x) if isinstance(x, ufm.Params) else x


@pytest.mark.parametrize("name", CALLS)
def test_every_function_knows_the_sphere_or_refuses_it(name):
    call, sound = CALLS[name]
    arguments = sound()
    problems = [x for x in arguments if isinstance(x, ufm.Problem)]
    if not problems or any(x.fixed for x in problems) or name == "hessian.unflatten":
        return  # the vector of the last one has the length of a problem with a bias
    arguments = [on_the_sphere(x) for x in arguments]
    if name in ON_THE_SPHERE:
        call(*arguments)
        return
    with pytest.raises(ufm.Refused, match="sphere"):
        call(*arguments)


# What answers for a classifier that does not move, or only asks the problem for its sizes.
HOLD = {
    "certify", "descend", "descend record", "gradient", "init_params", "objective", "solve",
    "hessian.verdict", "theory.claims", "theory.fixed_minimum", "optimizers.safe_step",
    "optimizers.curvature_bound", "mesh.init_params", "mesh.place", "mesh.shardings",
}  # fmt: skip


# Those whose sound arguments name the problem.
TAKES = [name for name, (_, sound) in CALLS.items() if "P" in sound.__code__.co_names]


@pytest.mark.parametrize("name", TAKES)
def test_what_is_written_for_a_moving_classifier_refuses_a_fixed_one(name):
    """Every public function that takes a problem answers for this one, or says what does."""
    call, sound = CALLS[name]
    arguments = [HELD if x is P else x for x in sound()]
    if any(x is HELD for x in arguments) and name not in HOLD:
        with pytest.raises(ufm.Refused, match="fixed"):
            call(*arguments)


@pytest.mark.parametrize("name", sorted(HOLD - {"descend", "descend record", "theory.claims"}))
def test_what_holds_a_classifier_takes_it(name):
    call, sound = CALLS[name]
    call(*(HELD if x is P else x for x in sound()))


def test_closures_over_a_problem_refuse_a_fixed_classifier_too():
    held = dataclasses.replace(SQUARED, fixed=("W",))
    for call in (theory.critical_points, theory.global_minimizer, theory.global_value):
        with pytest.raises(ufm.Refused, match="fixed"):
            call(*((held, 0) if call is theory.global_minimizer else (held,)))
    for name in ("index", "lam_min", "lam_min_off_orbit"):
        with pytest.raises(ufm.Refused, match="fixed"):
            ufm.descend(HELD, point(), "gd", steps=1, record=(name,))


def test_every_public_function_is_tried():
    spaces = {"": ufm, "theory.": theory, "hessian.": hessian, "critical.": critical}
    spaces |= {"metrics.": metrics}
    public = {
        f"{prefix}{name}"
        for prefix, space in spaces.items()
        for name in space.__all__
        if callable(getattr(space, name)) and not isinstance(getattr(space, name), type)
    }
    # Parts of others: `apply` of a linearisation, `hits` and `judge` of an orbit, `solve` twice.
    assert public - CALLS.keys() == {
        "hessian.apply",
        "critical.hits",
        "critical.judge",
        "critical.solve",
    }
