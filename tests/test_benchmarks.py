"""Benchmarks in small forms: they run, contestants agree, and pages show what is stored."""

import json
import sys

import numpy as np
import pytest
from compiling import compilations

import ufm
from benchmarks import accelerator, descent_steps, first_result, memory, naive, pages, paired

SHAPE = (3, 4, 5)
RECORDS = sorted(paired.RESULTS.glob("*.json"))


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.stem)
def test_a_record_names_processor_and_threads(path):
    record = json.loads(path.read_text(encoding="utf-8"))
    environment = record.get("environment", record)
    assert environment["processor"]
    assert environment["threads"]


@pytest.mark.parametrize("page", pages.PAGES)
def test_the_tables_of_a_page_are_those_of_the_stored_results(page):
    text = (paired.ROOT / page).read_text(encoding="utf-8")
    names = [name for _, name, _ in pages.BLOCK.findall(text)]
    assert len(names) > 1
    assert pages.filled(text) == text


def test_the_grid_of_a_first_result_is_that_of_the_readme():
    readme = (paired.ROOT / "README.md").read_text(encoding="utf-8")
    assert f"```toml\n{first_result.GRID}```\n" in readme
    assert "ufm.Problem(K=4, d=6, n=25, lam_W=5e-3, lam_H=5e-3, lam_b=5e-3)" in readme
    assert f"ufm descend {' '.join(first_result.FIRST)} --out runs/first" in readme


def test_naive_jax_takes_the_steps_of_numpy():
    problem, start = descent_steps.problem_and_start(SHAPE)
    found = naive.run(problem, start, 20, 0.1, 0.9)
    wanted = descent_steps.numpy(problem, start)(20)
    for x, y in zip(found[:2], wanted, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6)  # twenty steps in float32


def test_the_first_calls_of_a_process_compile_one_program_a_start_and_none_a_check():
    problem, key = ufm.Problem(7, 11, 13, lam=1e-3), ufm.check.key(5)
    with compilations() as drawn:
        params = ufm.init_params(key, problem)
    with compilations() as checked:
        ufm.model.points.check_point(problem, params)
    assert (len(drawn), len(checked)) == (1, 0)


def test_contestants_are_timed_against_ours(monkeypatch):
    monkeypatch.setattr(descent_steps, "ROUNDS", 2)
    monkeypatch.setattr(descent_steps, "SECONDS", 0.01)
    monkeypatch.setattr(paired, "installed", lambda _: False)
    row = descent_steps.measure(SHAPE)
    found = {(x["name"], x["threads"]) for x in row["contestants"]}
    cores = paired.cores()
    assert found == {("ufm", cores), ("naive", cores), ("numpy", 1), ("numpy", cores)}
    assert paired.ABSENT in descent_steps.table([row])
    tested = descent_steps.tested(SHAPE)
    assert set(tested["auto_over_constant"]) == set(descent_steps.TESTED)
    assert "3, 4, 5" in descent_steps.table_of_tested([tested])


def test_of_a_section_that_is_ended_the_last_line_counts():
    script = "import time; print('[1]', flush=True); print('[1, 2]', flush=True); time.sleep(60)"
    assert accelerator._told([sys.executable, "-c", script], 5.0) == [1, 2]
    assert accelerator._told([sys.executable, "-c", "raise SystemExit(1)"], 9.0) is None
    assert accelerator._told([], 0.0) is None


def test_sections_of_an_accelerator_fill_the_columns(monkeypatch):
    monkeypatch.setattr(descent_steps, "ROUNDS", 1)
    monkeypatch.setattr(descent_steps, "SECONDS", 0.01)
    x64 = ufm.check.jax.config.jax_enable_x64
    record = {"rates": accelerator.rates(accelerator.SMALL)}
    ufm.check.jax.config.update("jax_enable_x64", x64)
    record["descent_steps"] = [accelerator._step(SHAPE, beside=True)]
    record["memory"] = [{"shape": SHAPE, "peak_bytes": {"ufm": 2**21, "naive": 2**20}}]
    columns = accelerator.columns(record)
    assert "of products" in columns["descent_steps"]["3, 4, 5"]
    assert columns["memory"] == {"3, 4, 5": "2 against 1 MiB"}
    assert columns["growth"] == {}
    assert "Tflop/s" in accelerator.table(record)
    assert paired.ABSENT in accelerator.table({})


def test_a_fresh_process_tells_what_it_compiled(tmp_path):
    cold, warm = (first_result.once("descend", tmp_path, tmp_path) for _ in range(2))
    assert cold["programs"] == warm["programs"] > 1
    assert warm["compiling"] < cold["compiling"]  # loaded in the place of being compiled
    assert cold["processor"] > 0


def test_a_peak_holds_the_features():
    row = memory.measure((4, 256, 4096))
    assert all(peak > 4 * row["features_bytes"] for peak in row["peak_bytes"].values())
    assert "16" in memory.table([row])
