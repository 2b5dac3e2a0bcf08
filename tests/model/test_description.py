"""One description of a problem: whatever copies a problem carries every field of it, or refuses."""

import json
from dataclasses import dataclass, field, fields, replace

import jax
import numpy as np
import pytest
from laws import PROBLEMS

import ufm
from ufm.commands.shared import ModelFlags
from ufm.critical import atlas
from ufm.model import quotient
from ufm.model.problem import Problem
from ufm.report import stored
from ufm.sweeps import settings, shapes
from ufm.sweeps.grid import PROBLEM, SweepCell


@jax.tree_util.register_pytree_with_keys_class
@dataclass(frozen=True)
class Tempered(Problem):
    """A problem with one field more, which is described and traced."""

    temperature: float = field(default=1.0, metadata={"json": (int, float), "traced": True})


@jax.tree_util.register_pytree_with_keys_class
@dataclass(frozen=True)
class Undescribed(Problem):
    """A problem with one field more, of which no description is known."""

    clusters: tuple = ()


WARM = Tempered(3, 4, (2, 1, 1), 1e-3, 2e-3, temperature=7.0)
MUTE = Undescribed(3, 4, 2, 1e-3, 2e-3, clusters=(1.0, 2.0, 3.0))
METHOD = ("gd", 0.1, None, None, 0)


WEIGHED = Problem(
    3, 4, (2, 1, 1), 1e-3, 2e-3, weights=(1.0, 2.0, 0.5), decay_weights=(0.5, 1.0, 1.0)
)
EACH = pytest.mark.parametrize(
    "problem",
    [*PROBLEMS.values(), WARM, WEIGHED],
    ids=[*PROBLEMS, "one-field-more", "weights"],
)


@EACH
def test_a_description_is_read_back_as_the_same_problem(problem):
    told = problem.describe(whole=True)
    assert list(told) == [f.name for f in fields(problem)]
    assert type(problem).from_description(json.loads(json.dumps(told))) == problem
    assert type(problem).from_description(problem.describe()) == problem


def test_what_came_later_is_described_only_where_it_is_not_the_default():
    plain, weighed = PROBLEMS["two-classes-one-dimension"], WEIGHED
    assert list(plain.describe()) == ["K", "d", "n", "lam_W", "lam_H", "lam_b", "bias"]
    assert list(weighed.describe())[7:] == ["weights", "decay_weights"]


def test_a_description_without_a_field_that_has_a_default_takes_it():
    told = WARM.describe()
    del told["temperature"], told["bias"]
    assert Tempered.from_description(told) == replace(WARM, temperature=1.0)
    del told["lam_W"]
    with pytest.raises(ufm.Refused, match="lacks the field 'lam_W'"):
        Tempered.from_description(told)


@pytest.mark.parametrize("problem", [WARM, replace(WARM, n=2), MUTE])
@pytest.mark.parametrize("width", [2, 6])
def test_the_quotient_and_pytrees_carry_every_field(problem, width):
    # The quotient of unequal counts holds them as weights.
    others = {f.name for f in fields(problem)} - {"d", "n", "lam_H", "weights", "decay_weights"}
    copies = [quotient.of_width(problem, width), jax.tree.map(lambda x: x, problem)]
    for copy in copies:
        assert type(copy) is type(problem)
        assert all(getattr(copy, name) == getattr(problem, name) for name in others)


def test_lanes_and_shapes_of_a_sweep_carry_every_field():
    cells = [SweepCell(replace(WARM, temperature=x), *METHOD) for x in (1.0, 2.0)]
    lanes = shapes.lanes(cells).problem
    assert isinstance(lanes, Tempered)
    assert lanes.n == WARM.n
    np.testing.assert_array_equal(lanes.temperature, [1.0, 2.0])
    assert isinstance(shapes.Shape.of(cells[0]).example().problem, Tempered)
    unlike = SweepCell(replace(MUTE, clusters=(1.0, 1.0, 1.0)), *METHOD)
    assert shapes.Shape.of(unlike) != shapes.Shape.of(SweepCell(MUTE, *METHOD))
    assert set(settings.described(cells)) >= {f.name for f in fields(Tempered)}


def test_grids_and_flags_have_an_axis_for_every_field():
    names = {f.name for f in fields(Problem)}
    assert set(PROBLEM) == names == {f.name for f in fields(ModelFlags)} - {"lam"}
    assert names <= {f.name for f in fields(ufm.Grid)}


def test_lam_stands_for_every_decay_that_is_not_given():
    problem = Problem(3, 4, 5, lam=2e-3)
    assert problem == Problem(3, 4, 5, 2e-3, 2e-3, 2e-3)
    assert Problem(3, 4, 5, lam_W=1e-3, lam=2e-3) == Problem(3, 4, 5, 1e-3, 2e-3, 2e-3)
    assert Problem(3, 4, 5, lam=2e-3, lam_b=0) == Problem(3, 4, 5, 2e-3, 2e-3)
    assert "lam" not in problem.describe()
    assert Problem.from_description(problem.describe()) == problem
    assert replace(problem, lam_H=1e-3) == Problem(3, 4, 5, 2e-3, 1e-3, 2e-3)
    np.testing.assert_array_equal(Problem(3, 4, 5, lam=np.array([1.0, 2.0])).lam_b, [1.0, 2.0])
    for given, message in (
        ({}, "got no lam_W"),
        ({"lam_W": 1e-3}, "got no lam_H"),
        ({"lam": -1.0}, "lam=-1"),
        ({"lam": 1, "lam_W": 1, "lam_H": 1, "lam_b": 1}, "beside"),
    ):
        with pytest.raises(ufm.Refused, match=message):
            Problem(3, 4, 5, **given)


def test_lam_of_grids_and_flags_is_that_of_the_problem():
    grid = ufm.Grid(K=3, d=4, n=5, lam=[1e-3, 2e-3], lam_b=[0.0, 1e-2])
    found = [cell.problem for cell in grid.cells()]
    pairs = [(1e-3, 0.0), (1e-3, 1e-2), (2e-3, 0.0), (2e-3, 1e-2)]
    assert found == [Problem(3, 4, 5, lam=lam, lam_b=b) for lam, b in pairs]
    assert ufm.Grid(**grid.plain()) == grid
    assert ufm.Grid().cells()[0].problem == Problem(10, 20, 100, lam=5e-4)
    assert "lam" not in ufm.Grid().plain()  # as in folders of before
    with pytest.raises(ufm.Refused, match="beside"):
        ufm.Grid(lam=1e-3, lam_W=1e-3, lam_H=1e-3, lam_b=1e-3)
    flags = ModelFlags(3, 4, (5,), lam=1e-3, lam_H=2e-3)
    assert flags.problem() == Problem(3, 4, 5, 1e-3, 2e-3, 1e-3)
    told = flags.config()
    assert (told["lam_W"], told["lam_H"], told["lam_b"]) == (1e-3, 2e-3, 1e-3)
    assert "lam" not in told


def test_a_field_that_a_reader_does_not_know_is_refused_not_dropped():
    told = WARM.describe()
    with pytest.raises(ufm.Refused, match="field 'temperature'"):
        Problem.from_description(told)
    manifest = {"config": {"model": told}}
    with pytest.raises(ufm.Refused, match="field 'temperature'"):
        stored.problem(manifest, "manifest.json")
    model = {"K": 3, "d": 4, "n": [2], "lam_W": 1e-3, "lam_H": 1e-3}
    assert stored.problem({"config": {"model": model}}, "") == Problem(3, 4, 2, 1e-3, 1e-3)


def test_what_cannot_be_described_is_refused_before_a_file_is_written(tmp_path):
    for call in (MUTE.describe, lambda: settings.described([SweepCell(MUTE, *METHOD)])):
        with pytest.raises(ufm.Refused, match="'clusters' names no type in JSON"):
            call()
    census = ufm.critical.census(replace(MUTE, d=2), jax.random.key(0), starts=2, rounds=1)
    with atlas.opened(tmp_path / "a", census.problem, {}) as held:
        with pytest.raises(ufm.Refused, match="'clusters'"):
            held.save(census)
        assert not [x for x in (tmp_path / "a").iterdir() if x.name.endswith(".json")]


def test_arrays_of_decays_have_no_description():
    with pytest.raises(ufm.Refused):
        replace(WARM, lam_W=np.array([1e-3, 2e-3])).describe()
