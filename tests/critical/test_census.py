"""The census: complete where the answer is known, strict; and an atlas that loses nothing."""

import json

import jax
import jax.numpy as jnp
import laws
import numpy as np
import pytest
import reference

from ufm import theory
from ufm.cli import main
from ufm.critical import atlas, orbits, sources
from ufm.critical import search as census
from ufm.model import quotient
from ufm.model.objective import objective
from ufm.model.problem import Params, Problem

# The same K, d and starts: one set of compiled programs serves both.
FOUR = Problem(K=4, d=6, n=20, lam_W=5e-3, lam_H=5e-3, lam_b=5e-3)
FEW = Problem(K=4, d=6, n=2, lam_W=1e-2, lam_H=5e-3, lam_b=1e-2)
NARROW = Problem(K=6, d=2, n=3, lam_W=1e-3, lam_H=1e-3, lam_b=1e-2)


@pytest.fixture(scope="module")
def four():
    return census.census(FOUR, jax.random.key(0), starts=128, rounds=2)


@pytest.fixture(scope="module")
def few():
    return census.census(FEW, jax.random.key(0), starts=128, rounds=2)


def points_of(problem, orbit):
    """A representative as a point of the whole problem."""
    frame = jnp.eye(problem.d, orbit.params.W.shape[1])
    return quotient.lift(problem, jax.tree.map(jnp.asarray, orbit.params), frame)


# What is found


def test_every_orbit_is_a_critical_point_of_the_whole_problem_by_the_loops(four):
    for orbit in four.orbits:
        point = points_of(FOUR, orbit)
        slope = reference.gradient(*laws.reference_arguments(FOUR, point))
        # 1e-14 of terms of order 1.
        assert max(np.max(np.abs(part)) for part in slope) < 3e-14
        assert float(objective(FOUR, point)) == pytest.approx(orbit.value, abs=1e-14)
        laws.check_critical_point(FOUR, point, atol=1e-13)


def test_index_nullity_and_smallest_eigenvalue_are_those_of_the_dense_hessian(few):
    for orbit in few.orbits:
        H = reference.hessian(*laws.reference_arguments(FEW, points_of(FEW, orbit)))
        values = np.linalg.eigvalsh(H)
        assert int(np.sum(values < -1e-10)) == orbit.morse_index
        assert int(np.sum(np.abs(values) < 1e-10)) == orbit.nullity
        assert values[0] == pytest.approx(orbit.smallest, abs=1e-12)


def test_only_the_simplex_is_a_minimum_and_all_others_are_strict_saddles(four):
    first, *others = four.orbits
    assert first.kind == "global minimiser"
    assert first.value == pytest.approx(theory.global_value(FOUR), abs=1e-14)
    assert {orbit.kind for orbit in others} == {"strict saddle"}
    for orbit in others:
        # With an idle dimension the two-by-two of theory is an eigenvalue; here it is the least.
        assert orbit.smallest == pytest.approx(orbit.predicted, rel=1e-9)


def test_the_null_space_is_that_of_the_symmetries_at_every_orbit(four):
    assert all(orbit.nullity == orbit.orbit_dimension for orbit in four.orbits)


def test_every_partition_has_its_saddle_of_known_rank_and_index(four):
    # Tied minima: rank m − 1 and index (K − m) d for m groups.
    for groups in [(4,), (3, 1), (2, 2), (2, 1, 1), (1, 1, 1, 1)]:
        m = len(groups)
        assert any(
            orbit.groups == groups and (orbit.rank, orbit.morse_index) == (m - 1, (4 - m) * 6)
            for orbit in four.orbits
        ), groups


def test_two_censuses_from_other_keys_agree(four):
    other = census.census(FOUR, jax.random.key(7), starts=128, rounds=2)
    np.testing.assert_allclose(
        [orbit.value for orbit in other.orbits], [orbit.value for orbit in four.orbits], atol=1e-12
    )


@pytest.mark.long
def test_the_spurious_minimum_of_the_plane_is_found():
    found = census.census(NARROW, jax.random.key(0), starts=64, rounds=2)
    minima = [orbit for orbit in found.orbits if orbit.morse_index == 0]
    # f = 0.11549 and f = 0.15569, one class at the origin (independent computation).
    np.testing.assert_allclose([orbit.value for orbit in minima], [0.11549, 0.15569], atol=1e-5)
    assert {orbit.kind for orbit in minima} == {"local minimiser"}


@pytest.mark.long
def test_two_orbits_of_equal_value_stay_two():
    problem = Problem(K=4, d=6, n=5, lam_W=5e-3, lam_H=5e-3, bias=False)
    found = census.census(problem, jax.random.key(0), starts=128, rounds=3)
    twins = [orbit for orbit in found.orbits if abs(orbit.value - 0.800236648777) < 1e-9]
    assert sorted((orbit.groups, orbit.morse_index) for orbit in twins) == [
        ((2, 1, 1), 12),
        ((2, 2), 12),
    ]


def test_counts_add_up(few):
    arrived = dict.fromkeys(census.NAMES, 0)
    for orbit in few.orbits:
        for name, hits in orbit.hits.items():
            arrived[name] += hits
    for name, tried in few.tried.items():
        assert arrived[name] + few.refused[name] == tried


# Orbits and sources


def test_a_fingerprint_does_not_see_the_symmetries_but_tells_points_apart():
    problem = Problem(K=4, d=5, n=(2, 1, 2, 1), lam_W=8e-3, lam_H=2e-3, lam_b=1e-2)
    points = [laws.random_params(problem, seed) for seed in range(4)]
    prints = [np.asarray(orbits.fingerprint(problem, x)) for x in points]
    Q, _ = np.linalg.qr(np.random.default_rng(0).standard_normal((5, 5)))
    for point, own in zip(points, prints, strict=True):
        moved = laws.classes_permuted(problem, laws.rotated(point, Q), (2, 3, 0, 1))
        seen = orbits.fingerprint(problem, Params(*map(jnp.asarray, moved)))
        np.testing.assert_allclose(seen, own, rtol=0, atol=1e-12)
    for i in range(4):
        for j in range(i):
            assert np.max(np.abs(prints[i] - prints[j])) > 1e3 * orbits.SAME


def test_partitions_are_all_of_them():
    # The partition function p(K), K = 1 … 8.
    assert [len(list(sources.partitions(K))) for K in range(1, 9)] == [1, 2, 3, 5, 7, 11, 15, 22]
    assert all(sum(p) == 6 for p in sources.partitions(6))


def test_tied_and_padded_starts_have_the_symmetry_they_promise():
    small = census.quotient_of(FOUR)
    tied = sources.tied(small, jax.random.key(0), 128)
    shapes = {orbits.groups(np.asarray(W)) for W in tied.W}
    assert shapes == {(3, 1), (2, 2), (2, 1, 1)}
    padded = sources.padded(small, jax.random.key(0), 128)
    ranks = [int(np.linalg.matrix_rank(np.asarray(W))) for W in padded.W[:6]]
    assert ranks == [1, 2, 1, 2, 1, 2]


# The atlas


def test_an_atlas_comes_back_as_it_was_and_grows(tmp_path, few):
    folder = tmp_path / "atlas"
    with atlas.opened(folder, FEW, {}) as kept:
        kept.save(few)
    back, sessions = atlas.load(folder)
    assert len(sessions) == 1
    assert back.tried == few.tried
    assert [o._replace(params=None) for o in back.orbits] == [
        o._replace(params=None) for o in few.orbits
    ]
    for one, two in zip(back.orbits, few.orbits, strict=True):
        laws.assert_close(one.params, two.params, atol=0)
    with atlas.opened(folder, FEW, {}) as kept:
        more = census.census(FEW, jax.random.key(1), starts=128, rounds=1, known=kept.census)
        kept.save(more)
    assert {o.value for o in more.orbits} >= {o.value for o in few.orbits}
    assert sum(more.tried.values()) > sum(few.tried.values())
    assert len(atlas.load(folder)[1]) == 2
    assert len([x for x in folder.iterdir() if x.name.startswith("orbits-")]) == 1


def test_a_census_without_an_orbit_searches_on_and_leaves_no_atlas(tmp_path, monkeypatch):
    arrived = census.newton.Arrival

    def stalled(problem, starts):
        found = census._polish(problem, starts)
        codes = np.full(found.status.shape, arrived.stalled)
        return jax.tree.map(np.asarray, found._replace(status=codes))

    monkeypatch.setattr(census, "polish", stalled)
    with atlas.opened(tmp_path / "atlas", FEW, {}) as kept:
        found = census.census(
            FEW, 0, starts=128, rounds=2, on_batch=lambda batch: kept.save(batch.census)
        )
    assert found.orbits == ()
    assert found.refused == found.tried
    assert found.tried["padded"] == 256
    assert list((tmp_path / "atlas").iterdir()) == []


def test_a_death_between_arrays_and_manifest_loses_nothing(tmp_path, few, monkeypatch):
    with atlas.opened(tmp_path / "atlas", FEW, {}) as kept:
        kept.save(few)
    monkeypatch.setattr(atlas.storage, "write_sealed", lambda *_: 1 / 0)
    fewer = few._replace(orbits=few.orbits[:2])
    with atlas.opened(tmp_path / "atlas", FEW, {}) as kept, pytest.raises(ZeroDivisionError):
        kept.save(fewer)
    assert len(atlas.load(tmp_path / "atlas")[0].orbits) == len(few.orbits)


def test_foreign_and_damaged_atlases_are_refused(tmp_path, few):
    folder = tmp_path / "atlas"
    with atlas.opened(folder, FEW, {}) as kept:
        kept.save(few)
    with pytest.raises(ValueError, match="another problem"), atlas.opened(folder, FOUR, {}):
        pytest.fail("the atlas of another problem was opened")
    text = (folder / "atlas.json").read_text().replace('"rank": 1', '"rank": 2', 1)
    (folder / "atlas.json").write_text(text)
    with pytest.raises(ValueError, match="edited or damaged"):
        atlas.load(folder)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    with (
        pytest.raises(ValueError, match="no atlas"),
        atlas.opened(tmp_path / "mine", FEW, {}),
    ):
        pytest.fail("a folder that is no atlas was opened")
    with pytest.raises(ValueError, match=r"no atlas\.json"):
        atlas.load(tmp_path / "mine")


def test_the_command_prints_a_row_an_orbit_and_goes_on(tmp_path, capsys):
    line = ["census", "--K", "4", "--d", "6", "--n", "2", "--lam-W", "1e-2", "--lam-H", "5e-3"]
    line += ["--lam-b", "1e-2", "--starts", "128", "--rounds", "1", "--json"]
    line += ["--out", str(tmp_path / "a")]
    assert main(line) == 0
    first = json.loads(capsys.readouterr().out)
    assert main(line) == 0
    second = json.loads(capsys.readouterr().out)
    assert second["tried"]["random"] == 2 * first["tried"]["random"]
    assert {o["kind"] for o in second["orbits"]} == {"global minimiser", "strict saddle"}
    assert main([x for x in line if x != "--json"]) == 0
    assert "strict saddle" in capsys.readouterr().out


# Refusals


@pytest.mark.parametrize(
    ("problem", "options", "message"),
    [
        (Problem(3, 3, 2, 0.0, 1e-2), {}, "got lam_W=0.0"),
        (Problem(3, 3, 2, 1e-2, 0.0), {}, "got lam_H=0.0"),
        (Problem(60, 60, 2, 1e-2, 1e-2), {}, "coordinates of class means"),
        (FEW, {"starts": 0}, "got starts=0"),
        (FEW, {"rounds": 0}, "got rounds=0"),
    ],
)
def test_what_no_census_can_be_taken_of_is_refused(problem, options, message):
    with pytest.raises(ValueError, match=message):
        census.census(problem, jax.random.key(0), **options)


def test_a_census_of_another_problem_is_not_extended(few):
    with pytest.raises(ValueError, match="another problem"):
        census.census(FOUR, jax.random.key(0), known=few)


def test_arrays_of_decays_are_refused():
    with pytest.raises(TypeError, match="a problem at a time"):
        census.census(Problem(3, 3, 2, np.array([1e-2, 2e-2]), 1e-2), jax.random.key(0))


def test_a_census_of_absurdly_many_classes_is_refused_before_anything_of_their_size_is_made():
    problem = Problem(K=2**51 + 1, d=20, n=1, lam=5e-4)
    with pytest.raises(ValueError, match="variables in the coordinates of class means"):
        census.census(problem, jax.random.key(0))
