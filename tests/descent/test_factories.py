"""Optimisers of optax by name or as functions: what is traced, and what is compared by content."""

import functools

import jax
import numpy as np
import optax
import pytest
from compiling import compilations

import ufm
from ufm.check import Refused
from ufm.descent import factories
from ufm.descent.content import by_content

PROBLEM = ufm.Problem(K=4, d=5, n=6, lam_W=5e-3, lam_H=2e-3, lam_b=1e-2)
START = ufm.init_params(0, PROBLEM, 0.3)
SHORT = {"steps": 20, "record_every": 10}


def same(run, other):
    for x, y in zip(run.params, other.params, strict=True):
        # One is compiled with its hyperparameters as constants: XLA rounds otherwise.
        np.testing.assert_allclose(x, y, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("method", ["adamw", "optax.adamw", optax.adamw])
def test_a_factory_is_its_transformation(method):
    hyper = {"learning_rate": 0.02, "b2": 0.99, "weight_decay": 1e-2}
    run = ufm.descend(PROBLEM, START, method, **SHORT, **hyper)
    same(run, ufm.descend(PROBLEM, START, optax.adamw(**hyper), **SHORT))
    adam = ufm.descend(PROBLEM, START, "adam", **SHORT, learning_rate=0.02)
    assert np.max(np.abs(adam.params.W - run.params.W)) > 1e-3


def test_momentum_and_integers_are_numbers_where_the_factory_has_numbers():
    run = ufm.descend(PROBLEM, START, optax.sgd, **SHORT, learning_rate=1, momentum=0.5)
    same(run, ufm.descend(PROBLEM, START, "heavy_ball", **SHORT, learning_rate=1.0, momentum=0.5))
    own = ufm.descend(PROBLEM, START, "adam", **SHORT, b1=0)
    same(own, ufm.descend(PROBLEM, START, optax.adam(1e-3, b1=0.0), **SHORT))


def clipped(learning_rate, bound=1.0):
    return optax.chain(optax.clip_by_global_norm(bound), optax.sgd(learning_rate))


@pytest.mark.parametrize("method", ["lion", optax.adamw, clipped])
def test_all_numbers_of_a_factory_are_one_program(method):
    further = {"bound": 0.5} if method is clipped else {"b2": 0.9}
    ufm.descend(PROBLEM, START, method, **SHORT, learning_rate=0.1, **further)
    further = {name: x / 3 for name, x in further.items()}
    with compilations() as found:
        runs = [
            ufm.descend(PROBLEM, START, method, **SHORT, learning_rate=rate, **further)
            for rate in (0.2, np.float32(0.4))
        ]
    assert not found
    assert np.max(np.abs(runs[0].params.W - runs[1].params.W)) > 1e-3


def test_schedules_and_transformations_of_equal_content_are_one_program():
    def run(rate):
        # One each: a schedule that has run holds 100.0, where it held 100.
        schedules = [optax.cosine_decay_schedule(rate, 100) for _ in range(2)]
        own = ufm.descend(PROBLEM, START, "gd", **SHORT, learning_rate=schedules[0])
        chain = optax.chain(optax.clip(0.1), optax.sgd(schedules[1], momentum=0.9))
        return own, ufm.descend(PROBLEM, START, chain, **SHORT)

    first = run(0.3)
    with compilations() as found:
        again = run(0.3)
    assert not found
    with compilations() as found:
        other = run(0.4)
    assert found
    for x, y, z in zip(first, again, other, strict=True):
        np.testing.assert_array_equal(x.params.W, y.params.W)
        assert np.max(np.abs(x.params.W - z.params.W)) > 1e-4


RATE = 0.1


class Box:
    def __init__(self, value):
        self.value = value


def enclosing(x):
    return lambda _: x


def test_content_is_what_a_function_can_see(monkeypatch):
    def mine():
        return lambda count: RATE / (1 + count)

    assert by_content(mine()) == by_content(mine())
    before = by_content(mine())
    monkeypatch.setitem(globals(), "RATE", 0.2)
    assert by_content(mine()) != before
    equal = [1, 1.5, "a", None, (1, (2,)), {"a": [1]}, np.arange(3.0), optax.sgd, np.sum, len]
    for x in equal:
        assert by_content(enclosing(x)) == by_content(enclosing(x))
        assert hash(by_content(enclosing(x))) == hash(by_content(enclosing(x)))
    for x, y in [(1, 2), (1, 1.0), (1, True), (np.zeros(3), np.zeros(4)), (len, max), ([1], (1,))]:
        assert by_content(enclosing(x)) != by_content(enclosing(y))
    assert by_content(functools.partial(enclosing, 1)) == by_content(
        functools.partial(enclosing, 1)
    )
    assert by_content(lambda a=1: a) != by_content(lambda a=2: a)


def test_what_cannot_be_compared_is_equal_to_itself_alone():
    box = Box(1)
    f, g = enclosing(box), enclosing(box)
    assert by_content(f) == by_content(f)
    assert by_content(f) != by_content(g)  # the box may have been filled anew between the two


@pytest.mark.parametrize("name", sorted(set(factories.names()) - {"optimistic_adam", "noisy_sgd"}))
def test_every_factory_of_optax_takes_traced_numbers(name):
    values = factories.checked(factories.named(name, ()), {"learning_rate": 0.1})
    static, traced = factories.split(values)

    def moved(hyper):
        method = optax.with_extra_args_support(factories.build(getattr(optax, name), static, hyper))
        extra = {"value": 1.0, "grad": START, "value_fn": lambda p: p.W.sum()}
        return method.update(START, method.init(START), START, **extra)[0]

    shapes = jax.eval_shape(moved, traced)
    assert [x.dtype for x in shapes] == [x.dtype for x in START]


def looking(learning_rate, sharp=1.0):
    return optax.sgd(learning_rate if sharp > 0.5 else 0.1)


@pytest.mark.parametrize(
    ("method", "hyper", "message"),
    [
        ("adamm", {}, "Did you mean 'adam'"),
        ("L-BFGS", {}, "Did you mean 'lbfgs'"),
        ("optax.adamw", {"learning_rate": 0.1, "beta": 1.0}, "'beta'"),
        ("adamw", {}, "learning_rate"),
        ("adamw", {"learning_rate": -1.0}, "> 0"),
        ("adamw", {"learning_rate": "auto"}, "a finite number"),
        ("gd", {"b2": 0.9}, "for 'gd'"),
        (optax.adamw(0.1), {"b2": 0.9}, "set them inside it"),
        (looking, {"learning_rate": 0.1, "sharp": 1.0}, r"functools\.partial"),
        (lambda learning_rate: learning_rate, {"learning_rate": 0.1}, "transformations"),
        (3, {}, r"optax\.adamw"),
    ],
)
def test_what_is_no_method_is_refused(method, hyper, message):
    with pytest.raises(Refused, match=message):
        ufm.descend(PROBLEM, START, method, steps=5, **hyper)


def test_a_number_that_a_factory_looks_at_can_be_compiled_in():
    method = functools.partial(looking, sharp=0.0)
    run = ufm.descend(PROBLEM, START, method, **SHORT, learning_rate=5.0)
    same(run, ufm.descend(PROBLEM, START, "gd", **SHORT, learning_rate=0.1))
