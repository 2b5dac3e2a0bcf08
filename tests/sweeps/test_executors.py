"""Sweeps on executors: the same bits, no cell lost or doubled, whatever happens to the workers."""

import json
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version

import pytest

from ufm import Refused
from ufm.runs import record
from ufm.sweeps import run as sweeps
from ufm.sweeps.grid import Grid, Plan

SIZES = {"K": 3, "d": 2, "n": 4, "lam_W": 5e-3, "lam_H": 5e-3, "lam_b": 5e-3}
PLAN = Plan((Grid(**SIZES, optimizer="gd", seed=list(range(20))),), steps=300, gap_tol=None)
LONG = Plan(
    (Grid(**SIZES, optimizer="gd", learning_rate=0.5, seed=list(range(64))),),
    steps=40_000,
    gap_tol=None,
)


def assert_same(first, second):
    assert first.keys() == second.keys()
    for name, x in first.items():
        assert x.tobytes() == second[name].tobytes(), name


def test_threads_take_turns_and_give_the_bits_of_this_process(monkeypatch):
    # Batches of as many cells: XLA may sum in another order in programs of another size.
    monkeypatch.setattr(sweeps, "_calls", lambda: sweeps.BATCHES)
    here, seen = sweeps.sweep(PLAN), []
    with ThreadPoolExecutor(3) as executor:
        there = sweeps.sweep(PLAN, executor=executor, report=lambda part, _: seen.append(part))
        assert executor.submit(int).result() == 0, "the executor was closed"
    assert_same(here, there)
    assert seen == sorted(seen)
    assert seen[-1] == 1


def test_what_fails_in_a_worker_ends_the_sweep_and_cancels_the_rest(monkeypatch):
    begun = threading.Event()

    def broken(*_):
        begun.set()
        raise ZeroDivisionError("in a worker")

    monkeypatch.setattr(sweeps.batches, "rows", broken)
    with ThreadPoolExecutor(1) as executor, pytest.raises(ZeroDivisionError, match="in a worker"):
        sweeps.sweep(PLAN, executor=executor)
    assert begun.is_set()


@pytest.mark.parametrize("executor", [3, "tcp://10.0.0.7:8786", ThreadPoolExecutor])
def test_what_is_no_executor_is_refused(executor):
    with pytest.raises(Refused, match=r"allowed: a concurrent\.futures\.Executor"):
        sweeps.sweep(PLAN, executor=executor)


def test_a_client_is_asked_for_its_executor():
    class Client:
        def get_executor(self):
            raise AssertionError

    with pytest.raises(Refused, match=r"executor of this Client: \.get_executor\(\)"):
        sweeps.sweep(PLAN, executor=Client())


def test_an_address_where_no_scheduler_answers_is_refused(tmp_path, monkeypatch, capsys):
    from ufm import cli
    from ufm.commands import sweep as command

    monkeypatch.setattr(command, "CONNECT", 1)
    grid = tmp_path / "grid.toml"
    grid.write_text("K = 3\nd = 2\nn = 4\nlam = 5e-3\n")
    assert cli.main(["sweep", str(grid), "--scheduler", "tcp://127.0.0.1:9"]) == 2
    assert "none answered within 1 s" in capsys.readouterr().err.replace("\n", " ")


@pytest.fixture
def cluster(tmp_path):
    """A Dask scheduler and two workers, processes of their own on the loopback device."""
    file = tmp_path / "scheduler.json"
    common = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": tmp_path}
    command = [sys.executable, "-m", "dask"]
    scheduler = subprocess.Popen(
        [*command, "scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard",
         "--scheduler-file", str(file)], **common)  # fmt: skip
    workers = [
        subprocess.Popen([*command, "worker", "--scheduler-file", str(file), "--no-nanny",
                          "--nthreads", "2", "--no-dashboard", "--host", "127.0.0.1"], **common)
        for _ in range(2)
    ]  # fmt: skip
    try:
        from distributed import Client

        with Client(scheduler_file=str(file), timeout=60) as client:
            client.wait_for_workers(2, timeout=60)
            yield client, workers
    finally:
        for process in [*workers, scheduler]:
            process.kill()
            process.wait()


@pytest.mark.slow
def test_a_worker_killed_on_the_way_costs_no_cell_and_a_sweep_resumes(
    tmp_path, cluster, monkeypatch
):
    client, workers = cluster
    killed, kept = tmp_path / "killed", []

    def kill(part, _):
        kept.append(part)
        if 0 < part < 1 and workers[0].poll() is None:
            workers[0].kill()

    with client.get_executor() as executor:
        table = sweeps.sweep(LONG, killed, executor=executor, report=kill)
    assert workers[0].poll() is not None
    assert table["cell"].tolist() == list(range(64))
    monkeypatch.setattr(sweeps, "_calls", lambda: sweeps.BATCHES)
    assert_same(table, sweeps.sweep(LONG))

    # Cut off on the way, it goes on from the file with the worker that is left.
    class CutOffError(Exception):
        pass

    def cut(part, _):
        if part > 0.2:
            raise CutOffError

    half = tmp_path / "half"
    with client.get_executor() as executor, pytest.raises(CutOffError):
        sweeps.sweep(LONG, half, executor=executor, report=cut)
    before = sweeps.load(half)[0]["cell"]
    assert 0 < len(before) < 64
    assert record.load_latest(half).manifest["status"] != "complete"
    with client.get_executor() as executor:
        assert_same(sweeps.sweep(LONG, half, executor=executor), table)


@pytest.mark.slow
def test_the_command_deals_cells_to_a_scheduler(tmp_path, cluster):
    client, _ = cluster
    grid = tmp_path / "grid.toml"
    grid.write_text("K = 3\nd = 2\nn = 4\nlam = 5e-3\nseed = [0, 1, 2]\nsteps = 200\n")
    address = client.scheduler.address
    done = subprocess.run(
        [sys.executable, "-m", "ufm.cli", "sweep", str(grid), "--scheduler", address, "--json"],
        capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr.decode()
    assert [row["cell"] for row in json.loads(done.stdout)] == [0, 1, 2]


@pytest.mark.slow
def test_workers_with_another_ufm_are_refused(cluster, monkeypatch):
    from ufm.commands import sweep as command

    client, _ = cluster
    command._compare(client)
    monkeypatch.setattr(command, "version", lambda _: "99.0")
    with pytest.raises(Refused, match=rf"got {version('ufm')} on .*; allowed: ufm 99\.0 as here"):
        command._compare(client)
