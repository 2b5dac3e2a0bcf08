"""Many devices and many processes compute what one device computes."""

import json
import os
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest

import ufm

# Sums over samples in another order; sixty steps and a spectral norm magnify it a little.
TOLERANCES = {"rtol": 1e-8, "atol": 1e-12}


def started(how: str, devices: int, *more: str) -> subprocess.Popen:
    own = os.environ.get("XLA_FLAGS", "")
    flags = f"{own} --xla_force_host_platform_device_count={devices}"
    # NPROC: threads of XLA. With one a device, sums over devices that wait for threads of one
    # another would wait for ever, however many cores this machine has.
    return subprocess.Popen(
        [sys.executable, "-m", "tests.mesh_laws", how, *more],
        env=os.environ | {"XLA_FLAGS": flags, "NPROC": str(devices)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def result(process: subprocess.Popen) -> dict:
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err[-3000:]
    return json.loads(out.splitlines()[-1])


def assert_same(found: dict, expected: dict) -> None:
    assert found.keys() <= expected.keys()
    for name, x in found.items():
        np.testing.assert_allclose(x, expected[name], **TOLERANCES, err_msg=name)


@pytest.fixture(scope="module")
def one():
    return result(started("one", 1, "all"))


@pytest.mark.slow
@pytest.mark.parametrize("how", ["mesh", "classes"])
def test_eight_devices_compute_what_one_does(one, how):
    found = result(started(how, 8, "all"))
    assert found.keys() == one.keys()
    assert_same(found, one)


def two(which: str, *more: str) -> tuple[dict, dict]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    processes = [started("mesh", 2, which, address, str(i), "2", *more) for i in range(2)]
    first, second = (result(process) for process in processes)
    return first, second


@pytest.mark.slow
def test_two_processes_compute_what_one_does(one):
    first, second = two("all")
    assert first == second
    assert {"heavy_ball/gap", "sgd/loss", "lbfgs/nc1", "certificate", "product"} <= first.keys()
    assert_same(first, one)


@pytest.mark.slow
def test_two_processes_keep_and_resume_runs_as_one_does_and_refuse_sweeps(tmp_path):
    first, second = two("kept", str(tmp_path / "two"))
    assert first == second
    alone = result(started("one", 1, "kept", str(tmp_path / "one")))
    assert first.keys() == alone.keys()
    assert_same(first, alone)


def test_sizes_that_do_not_divide_are_refused_with_the_sizes_that_do():
    problem = ufm.Problem(3, 4, 5, 5e-3, 5e-3, 5e-3)
    # The check needs the shape of a mesh alone; this process has one device.
    many = jax.sharding.AbstractMesh((4,), ("samples",))
    with pytest.raises(
        ValueError, match=r"N=15 on 4 devices; allowed: a multiple of 4, such as 12"
    ):
        ufm.mesh.shardings(problem, many)
    three = jax.sharding.AbstractMesh((5,), ("samples",))
    with pytest.raises(ValueError, match="K=3 on 5 devices"):
        ufm.mesh.shardings(problem, three, classes=True)


def test_placing_keeps_the_numbers_and_refuses_what_does_not_fit():
    problem = ufm.Problem(3, 4, 5, 5e-3, 5e-3, 5e-3)
    params = ufm.init_params(jax.random.key(0), problem)
    mesh = ufm.mesh.over_samples()
    placed = ufm.mesh.place(problem, params, mesh)
    made = ufm.mesh.init_params(jax.random.key(0), problem, mesh)
    for x, y, z in zip(params, placed, made, strict=True):
        assert np.array_equal(x, y)
        # Compiled whole, the last multiplication rounds otherwise.
        np.testing.assert_allclose(x, z, rtol=4 * np.finfo(np.float64).eps)
    with pytest.raises(ValueError, match="shape"):
        ufm.mesh.place(problem, params._replace(H=params.H.T), mesh)
