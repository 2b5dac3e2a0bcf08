"""A batch that changes its program runs on as in one; where it changes follows from the plan."""

import dataclasses

import jax
import numpy as np
import pytest

from ufm.descent import arguments
from ufm.descent.loop import Limits, Method
from ufm.model.problem import Problem
from ufm.runtime import programs
from ufm.sweeps import batches, stages
from ufm.sweeps import run as sweeps
from ufm.sweeps.grid import Grid, Plan

METHOD = Method("heavy_ball", None, None)
QUICK = {"xla_backend_optimization_level": 0}


@pytest.fixture
def quickest(monkeypatch):
    """Tests are compiled with the fewest optimisations anyway; here as in a user's process."""
    monkeypatch.setattr(programs, "quickest", lambda: QUICK)
    batches._program.cache_clear()


@pytest.mark.parametrize("record_every", [None, 1, 7, 100])
@pytest.mark.parametrize("steps", [5, 64, 1000])
def test_records_are_counted_as_the_loop_takes_them(record_every, steps):
    plan = Plan(steps=steps, record_every=record_every)
    every, early = arguments.stride(record_every)
    limits = Limits(steps, every, -1.0, -1.0, early)
    at, taken = 0, [0]
    while at < steps:
        at += int(limits.stride(at))
        taken.append(at)
    for begun in taken:
        assert stages.records(plan, begun, None) == len(taken) - 1 - taken.index(begun)
        for until in (1, 50, 333, steps, 2 * steps):
            left = [x for x in taken if x > begun]
            ends = sum(x < min(until, steps) for x in left) + 1
            expected = 0 if begun >= min(until, steps) else ends
            assert stages.records(plan, begun, until) == expected


@pytest.mark.usefixtures("quickest")
def test_a_known_length_needs_one_program_and_a_large_step_none_of_the_quick_ones():
    small, large = Problem(3, 4, 5, 1e-3, 1e-3, 1e-3), Problem(100, 128, 100, 1e-3, 1e-3, 1e-3)
    tolerant = Plan(steps=10**6, gap_tol=1e-8)
    first, last = stages.stages(tolerant, small, METHOD, 12)
    assert dict(first.options) == QUICK
    assert last.until is None
    # The step of the change follows from sizes, not from the limit of steps.
    longer = dataclasses.replace(tolerant, steps=10**7)
    assert stages.stages(longer, small, METHOD, 12) == (first, last)
    assert first.until * 12 * stages.seconds(small) <= stages.QUICK
    assert stages.stages(tolerant, large, METHOD, 12) == (last,)
    untold = dataclasses.replace(tolerant, gap_tol=None)
    assert stages.stages(untold, small, METHOD, 12) == (last,)
    brief = dataclasses.replace(untold, steps=100)
    assert stages.stages(brief, small, METHOD, 12) == (first._replace(until=None),)


def test_where_the_process_compiles_quickly_anyway_there_is_one_stage(monkeypatch):
    monkeypatch.setattr(programs, "quickest", dict)
    tolerant = Plan(steps=10**6, gap_tol=1e-8)
    assert len(stages.stages(tolerant, Problem(3, 4, 5, 1e-3, 1e-3, 1e-3), METHOD, 12)) == 1


@pytest.mark.usefixtures("quickest")
@pytest.mark.parametrize("history", [False, True])
def test_a_sweep_in_two_stages_is_a_sweep_in_one_and_repeats_its_bits(history, monkeypatch):
    grid = Grid(K=3, d=4, n=5, lam=[5e-3, 2e-2], optimizer="heavy_ball", learning_rate=0.5)
    plan = Plan((grid,), steps=600, gap_tol=1e-7, record_every=20)
    monkeypatch.setattr(stages, "FEWEST", 0)
    monkeypatch.setattr(stages, "QUICK", 1.2e-3)  # some 110 steps of one cell
    compiled, program = [], batches._program

    def counted(*args):
        compiled.append(args[-1])
        return program(*args)

    monkeypatch.setattr(batches, "_program", counted)
    two, again = (sweeps.sweep(plan, history=history) for _ in range(2))
    assert set(compiled) == {(), tuple(QUICK.items())}
    monkeypatch.setattr(programs, "quickest", dict)
    one = sweeps.sweep(plan, history=history)
    assert two.keys() == one.keys()
    for name, x in two.items():
        np.testing.assert_array_equal(x, again[name])
        if np.issubdtype(x.dtype, np.floating):
            np.testing.assert_allclose(x, one[name], rtol=1e-6, atol=1e-12)
        else:
            np.testing.assert_array_equal(x, one[name])
    assert max(two["steps"]) > 200


def test_jax_compiles_with_both_sets_of_options():
    # Options that XLA does not know would end every sweep.
    for options in ({}, programs.quickest()):
        assert jax.jit(lambda x: x + 1, compiler_options=options)(1) == 2
