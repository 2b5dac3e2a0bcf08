"""A run on disk is whole or absent, verified when read, and survives death at any line.

The crash tests run this file as a program: a process that imports the module once and forks
children, which are killed (by SIGKILL at a random moment, or at a chosen line of record.py or
storage.py) while the parent watches what they leave behind.
"""

import fcntl
import functools
import hashlib
import inspect
import json
import math
import os
import random
import select
import shutil
import signal
import subprocess
import sys
import time
import unittest.mock
from pathlib import Path
from types import FrameType, SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ufm.runs import record, sessions, storage, values
from ufm.runs.record import (
    RecordError,
    close_run,
    load_checkpoint,
    load_run,
    open_run,
    save_checkpoint,
)

CONFIG = {"K": 4, "decay": {"W": 1e-3, "H": 0.1}, "steps": [1, 2]}
KILLED = 9
SLOW = pytest.mark.long
SOURCES = (record.__file__, storage.__file__, values.__file__)
DTYPES = [
    "?", "i1", "u1", "<i2", ">i4", "u8", "<i8", "f2", "<f4", ">f8", "f8", "c8", "c16", "S5", "<U3",
]  # fmt: skip


@pytest.fixture(autouse=True)
def fast_disk(monkeypatch):
    """Only the machine's loss of power needs fsync; the crash tests here kill processes."""
    monkeypatch.setattr(os, "fsync", lambda *_: None)


def finished_run(folder, arrays=None, results=None):
    with open_run(folder, "descend", CONFIG, seed=3) as handle:
        close_run(handle, {"x": np.arange(3.0)} if arrays is None else arrays, results or {})
    return folder


def unfinished_run(folder, step=5):
    with open_run(folder, "descend", CONFIG, seed=3) as handle:
        save_checkpoint(handle, {"x": np.full(3, float(step))}, {"step": step})
    return folder


def reopen(folder):
    return open_run(folder, "descend", CONFIG, seed=3)


def kept_checkpoint(folder):
    with reopen(folder) as handle:
        checkpoint = load_checkpoint(handle)
    assert checkpoint is not None
    return checkpoint


def contents(folder):
    return {file.name: file.read_bytes() for file in Path(folder).iterdir()}


def forge(folder, change):
    """Edit the manifest and make its own hash fit, by an independent reading of the format."""
    file = folder / "manifest.json"
    manifest = json.loads(file.read_text())
    del manifest["sha256"]
    change(manifest)
    text = json.dumps(manifest, sort_keys=True, separators=(",", ":"))
    manifest["sha256"] = hashlib.sha256(text.encode()).hexdigest()
    file.write_text(json.dumps(manifest))


# What is stored comes back


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_arrays_of_any_type_and_shape_come_back_bit_for_bit(tmp_path_factory, data):
    shapes = hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)
    array = st.sampled_from(DTYPES).flatmap(lambda dtype: hnp.arrays(np.dtype(dtype), shapes))
    names = st.text("ab.0_/-é", min_size=1, max_size=6)
    arrays = data.draw(st.dictionaries(names, array, max_size=3))
    folder = tmp_path_factory.mktemp("run")
    with open_run(folder, "descend", CONFIG, seed=3) as handle:
        save_checkpoint(handle, arrays, {})
        kept, _ = load_checkpoint(handle) or ({}, {})
        close_run(handle, arrays, {})
    for read in (kept, load_run(folder).arrays):
        assert list(read) == list(arrays)
        for name, array in arrays.items():
            assert read[name].dtype == array.dtype
            assert read[name].shape == array.shape
            assert read[name].tobytes() == array.tobytes()


def test_names_that_numpy_uses_itself_and_columns_first_arrays_come_back(tmp_path):
    fortran = np.asfortranarray(np.arange(6.0).reshape(2, 3))
    arrays = {"file": fortran, "allow_pickle": fortran[:, ::-1], "x.npy": fortran.T, "arr_0": 1.5}
    read = load_run(finished_run(tmp_path, arrays)).arrays
    for name, array in arrays.items():
        np.testing.assert_array_equal(read[name], array)


def test_jax_arrays_are_stored_as_their_numpy_values(tmp_path):
    key_data = jax.random.key_data(jax.random.key(7))
    read = load_run(finished_run(tmp_path, {"x": jnp.arange(3) / 7, "key": key_data})).arrays
    np.testing.assert_array_equal(read["x"], np.arange(3) / 7)
    np.testing.assert_array_equal(read["key"], np.asarray(key_data))


def test_equal_arrays_make_equal_files(tmp_path):
    first, second = finished_run(tmp_path / "a"), finished_run(tmp_path / "b")
    assert (first / "arrays.npz").read_bytes() == (second / "arrays.npz").read_bytes()


def test_results_and_state_keep_every_float_and_take_0d_arrays(tmp_path):
    values = {"pi": math.pi, "tiny": 5e-324, "inf": math.inf, "n": np.int32(3), "ok": np.True_}
    values |= {"loss": jnp.asarray(1 / 3), "half": np.float32(0.1), "list": (1, None, "é\ud800")}
    expected: dict[str, Any] = {"pi": math.pi, "tiny": 5e-324, "inf": math.inf, "n": 3, "ok": True}
    expected |= {"loss": 1 / 3, "half": float(np.float32(0.1)), "list": [1, None, "é\ud800"]}
    with reopen(tmp_path) as handle:
        save_checkpoint(handle, {}, values)
        assert load_checkpoint(handle) == ({}, expected)
        close_run(handle, {}, values)
    assert load_run(tmp_path).manifest["results"] == expected


def test_manifest_says_what_ran_and_on_what(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/somewhere/bin/ufm", "descend", "--out", "a b"])
    monkeypatch.setitem(sys.modules, "__main__", SimpleNamespace(__spec__=None))
    manifest = load_run(finished_run(tmp_path / "run")).manifest
    device = jax.devices()[0]
    expected = {
        "format": "ufm-run", "version": 1, "kind": "descend", "config": CONFIG, "seed": 3,
        "precision": "float64", "status": "complete", "command": "ufm descend --out 'a b'",
        "platform": device.platform, "device": device.device_kind, "resumed": [],
    }  # fmt: skip
    assert {name: manifest[name] for name in expected} == expected
    assert set(manifest["versions"]) == {"python", "ufm", "jax", "jaxlib", "numpy", "optax"}
    assert manifest["versions"]["jax"] == jax.__version__
    assert manifest["versions"]["numpy"] == np.__version__
    assert manifest["started"] <= manifest["finished"]
    text = (tmp_path / "run" / "manifest.json").read_text()
    root = str(Path(record.__file__).parents[2])
    assert not any(place in text for place in (str(tmp_path), root, sys.prefix, "somewhere"))


def test_a_module_run_with_dash_m_is_recorded_by_its_name(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/somewhere/experiments/__main__.py", "--quick"])
    spec = SimpleNamespace(name="experiments.__main__")
    monkeypatch.setitem(sys.modules, "__main__", SimpleNamespace(__spec__=spec))
    assert sessions._command() == "python -m experiments --quick"


def test_seconds_add_up_over_sessions_and_each_session_is_listed(tmp_path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    handle = reopen(tmp_path)
    now[0] += 5.0
    save_checkpoint(handle, {}, {"step": 1}, compile_seconds=2.0)
    now[0] += 1.0
    close_run(handle, {}, {}, "interrupted")
    handle = reopen(tmp_path)
    now[0] += 10.0
    save_checkpoint(handle, {}, {"step": 2}, compile_seconds=0.25)
    now[0] += 0.5
    close_run(handle, {}, {}, compile_seconds=0.5)
    manifest = load_run(tmp_path).manifest
    assert (manifest["wall_seconds"], manifest["compile_seconds"]) == (16.5, 2.5)
    assert [session["platform"] for session in manifest["resumed"]] == [manifest["platform"]]


# What cannot be stored is refused before anything is written


@pytest.mark.parametrize(
    ("name", "array"),
    [
        ("x", np.array([None, 1])),
        ("x", jnp.ones(2, jnp.bfloat16)),
        ("x", np.ones(2, np.longdouble)),
        ("x", np.zeros(2, "i4,f8")),
        ("key", jax.random.key(0)),
        ("", np.ones(1)),
        ("a\0b", np.ones(1)),
    ],
)
def test_arrays_that_would_not_come_back_are_refused_by_name(tmp_path, name, array):
    with reopen(tmp_path) as handle:
        save_checkpoint(handle, {"x": np.ones(1)}, {"step": 1})
        before = contents(tmp_path)
        with pytest.raises(RecordError) as caught:
            save_checkpoint(handle, {name: array}, {"step": 2})
        assert repr(name) in str(caught.value)
        with pytest.raises(RecordError):
            close_run(handle, {name: array}, {})
        assert contents(tmp_path) == before


@pytest.mark.parametrize("value", [np.ones(2), 1j, {1: 2}, np.longdouble(1), object(), {1.5}])
def test_values_that_json_cannot_hold_are_refused_by_place(tmp_path, value):
    with pytest.raises(RecordError, match=r"config\.a\[1\]"):
        open_run(tmp_path / "run", "descend", {"a": [0, value]})
    assert not (tmp_path / "run").exists()


def test_an_unknown_status_is_refused(tmp_path):
    close: Any = inspect.unwrap(close_run)  # below the type checker of the tests
    with reopen(tmp_path) as handle, pytest.raises(RecordError, match="'interrupted'"):
        close(handle, {}, {}, "done")


# Damage is detected


@pytest.mark.parametrize("stride", [11, pytest.param(1, marks=SLOW)])
@pytest.mark.parametrize(
    ("make", "read", "name"),
    [
        (finished_run, load_run, "arrays.npz"),
        (finished_run, load_run, "manifest.json"),
        (unfinished_run, kept_checkpoint, "checkpoint"),
    ],
)
def test_flipped_bytes_and_truncations_are_refused(tmp_path, make, read, name, stride):
    make(tmp_path)
    [file] = [file for file in tmp_path.iterdir() if file.name.startswith(name)]
    whole, original = file.read_bytes(), read(tmp_path)

    def refused():
        try:
            found = read(tmp_path)
        except RecordError as error:
            return str(tmp_path) in str(error) and "run again" in str(error)
        # White space between the manifest's entries may change: it means nothing.
        return name == "manifest.json" and found.manifest == original.manifest

    bits = random.Random(0)
    for place in range(0, len(whole), stride):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << bits.randrange(8)
        file.write_bytes(damaged)
        assert refused(), f"byte {place}"
    for length in range(0, len(whole) - 1, 7 * stride):
        file.write_bytes(whole[:length])
        assert refused(), f"length {length}"
    file.unlink()
    with pytest.raises(RecordError):
        read(tmp_path)


def test_any_changed_digit_of_a_hash_in_the_manifest_is_refused(tmp_path):
    file = finished_run(tmp_path) / "manifest.json"
    text = file.read_text()
    hashes = [
        word for word in text.split('"') if len(word) == 64 and set(word) <= set("0123456789abcdef")
    ]
    assert len(hashes) == 4  # config, file, array, manifest
    for known in hashes:
        for place in range(64):
            digit = "0" if known[place] != "0" else "f"
            file.write_text(text.replace(known, known[:place] + digit + known[place + 1 :]))
            with pytest.raises(RecordError, match="edited or damaged"):
                load_run(tmp_path)


def test_a_forged_manifest_still_fails_the_hashes_inside_it(tmp_path):
    def other_array(manifest):
        manifest["arrays"]["arrays"]["x"]["sha256"] = "0" * 64

    def missing_array(manifest):
        manifest["arrays"]["arrays"] = {}

    def other_file(manifest):
        manifest["arrays"]["sha256"] = "0" * 64

    def other_config(manifest):
        manifest["config"]["K"] = 5

    changes = [(other_array, "'x'"), (missing_array, "'x'"), (other_file, "not the file")]
    for change, message in [*changes, (other_config, "edited")]:
        folder = finished_run(tmp_path / change.__name__)
        forge(folder, change)
        with pytest.raises(RecordError, match=message):
            load_run(folder)
    forge(finished_run(tmp_path / "same"), lambda *_: None)
    assert load_run(tmp_path / "same").manifest["status"] == "complete"


def test_an_array_pickled_by_somebody_else_is_never_unpickled(tmp_path):
    folder = finished_run(tmp_path)
    np.savez(folder / "arrays.npz", x=np.array([None, 1], dtype=object))
    digest = hashlib.sha256((folder / "arrays.npz").read_bytes()).hexdigest()
    forge(folder, lambda manifest: manifest["arrays"].update(sha256=digest))
    with pytest.raises(RecordError, match="allow_pickle=False"):
        load_run(folder)


def test_other_formats_and_newer_versions_are_refused_as_such(tmp_path):
    forge(finished_run(tmp_path / "a"), lambda manifest: manifest.update(version=2))
    with pytest.raises(RecordError, match="version 2, this ufm reads 1: update"):
        load_run(tmp_path / "a")
    forge(finished_run(tmp_path / "b"), lambda manifest: manifest.update(format="other"))
    with pytest.raises(RecordError, match="not the manifest of a run"):
        load_run(tmp_path / "b")
    with pytest.raises(RecordError, match="holds no run"):
        load_run(tmp_path / "none")
    for text in ["[]", "1", "[" * 100_000, "\xff", '"sha256"', "null"]:
        (tmp_path / "b" / "manifest.json").write_text(text, encoding="latin-1")
        with pytest.raises(RecordError, match="damaged"):
            load_run(tmp_path / "b")


# Whose folder it is


def test_a_folder_with_foreign_files_is_refused_and_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(RecordError, match=r"thesis\.tex"):
        reopen(tmp_path)
    assert contents(tmp_path) == {"thesis.tex": b"precious"}


def test_files_that_are_not_ours_survive_in_the_folder_of_a_run(tmp_path):
    unfinished_run(tmp_path)
    names = ["notes.txt", "checkpoint-best.npz", "arrays.npz.bak"]
    for name in names:
        (tmp_path / name).write_text("mine")
    with reopen(tmp_path) as handle:
        save_checkpoint(handle, {}, {})
        close_run(handle, {}, {})
    assert sorted(contents(tmp_path)) == sorted(["arrays.npz", "manifest.json", *names])


@pytest.mark.parametrize("make", [finished_run, unfinished_run])
def test_a_run_with_other_fields_is_refused_naming_exactly_them(tmp_path, make):
    make(tmp_path)
    before = contents(tmp_path)
    other = {"K": 5, "decay": {"W": 1e-3, "H": 0.2}, "steps": [1, 2], "new": {"a.b": None}}
    with pytest.raises(RecordError) as caught:
        open_run(tmp_path, "census", other, seed=4, precision="float32")
    named = [line.strip() for line in str(caught.value).splitlines()[1:-1]]
    assert named == [
        "config.K: got 5, kept 4",
        "config.decay.H: got 0.2, kept 0.1",
        "config.new.a.b: got null, kept nothing",
        'kind: got "census", kept "descend"',
        'precision: got "float32", kept "float64"',
        "seed: got 4, kept 3",
    ]
    assert "Choose another folder" in str(caught.value)
    assert contents(tmp_path) == before


def larger(folder, fits=True, **other):
    growth = record.Growth(
        lambda manifest: fits and manifest["config"] == values.plain(CONFIG, "config"),
        lambda manifest, stored: {name: x + manifest["config"]["K"] for name, x in stored.items()},
    )
    return open_run(
        folder, "descend", {**CONFIG, "steps": [9]}, **{"seed": 3} | other, growth=growth
    )


@pytest.mark.parametrize("make", [finished_run, unfinished_run])
def test_a_run_grows_into_one_that_it_fits(tmp_path, make):
    folder = make(tmp_path)
    start = np.arange(3.0) if make is finished_run else np.full(3, 5.0)
    before = contents(folder)
    for odd in ({"fits": False}, {"seed": 4}):
        with pytest.raises(RecordError, match="another run"):
            larger(folder, **odd)
    assert contents(folder) == before
    with larger(folder) as handle:
        arrays, _ = load_checkpoint(handle)
        np.testing.assert_array_equal(arrays["x"], start + CONFIG["K"])
    with pytest.raises(RecordError, match="steps"):
        reopen(folder)  # it is the larger one now
    with larger(folder) as handle:
        np.testing.assert_array_equal(load_checkpoint(handle)[0]["x"], start + CONFIG["K"])
        close_run(handle, arrays, {})
    assert larger(folder).status == "complete"
    assert sorted(contents(folder)) == ["arrays.npz", "manifest.json"]


def test_a_run_that_is_killed_while_it_grows_stays_what_it_was(tmp_path, monkeypatch):
    before = contents(finished_run(tmp_path))

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(storage, "write_sealed", killed)
    with pytest.raises(KeyboardInterrupt):
        larger(tmp_path)
    monkeypatch.undo()
    assert reopen(tmp_path).status == "complete"
    assert contents(tmp_path) == before


def test_configs_are_equal_as_values_whatever_their_order_or_container(tmp_path):
    config = {"a": (1, 2), "b": math.nan, "c": {}}
    with open_run(tmp_path, "descend", config) as handle:
        close_run(handle, {}, {})
    same = {"c": {}, "b": float("nan"), "a": [np.int64(1), 2]}
    assert open_run(tmp_path, "descend", same).status == "complete"
    for other in [{**same, "a": [1, 2.0]}, {**same, "c": None}, {"a": [1, 2], "b": math.nan}]:
        with pytest.raises(RecordError, match="differ"):
            open_run(tmp_path, "descend", other)


def test_a_finished_run_says_so_and_is_never_overwritten(tmp_path):
    before = contents(finished_run(tmp_path))
    assert sorted(before) == ["arrays.npz", "manifest.json"]
    with reopen(tmp_path) as handle:
        assert handle.status == "complete"
        assert load_checkpoint(handle) is None
        with pytest.raises(RecordError, match="not overwritten"):
            save_checkpoint(handle, {}, {})
        with pytest.raises(RecordError, match="not overwritten"):
            close_run(handle, {}, {})
    assert contents(tmp_path) == before


def test_a_closed_handle_writes_no_more(tmp_path):
    handle = reopen(tmp_path)
    close_run(handle, {}, {}, "interrupted")
    before = contents(tmp_path)
    with pytest.raises(RecordError, match="closed"):
        close_run(handle, {}, {})
    assert contents(tmp_path) == before


def test_two_openers_are_refused_and_the_first_goes_on(tmp_path):
    handle = reopen(tmp_path)
    with pytest.raises(RecordError, match=f"another process .*process {os.getpid()}"):
        reopen(tmp_path)
    save_checkpoint(handle, {}, {"step": 1})
    close_run(handle, {}, {})
    assert reopen(tmp_path).status == "complete"


def test_a_lock_file_left_by_a_dead_process_does_not_lock(tmp_path):
    (tmp_path / ".lock").write_text("1\n")
    (tmp_path / ".partial").write_text("half a mani")
    assert load_run(finished_run(tmp_path)).manifest["status"] == "complete"
    assert sorted(contents(tmp_path)) == ["arrays.npz", "manifest.json"]


def test_a_lock_file_removed_between_opening_and_locking_is_not_trusted(tmp_path, monkeypatch):
    # The former holder's last act, in the gap of the new one: else two could hold two files.
    lock = fcntl.flock
    flock: list[int] = []

    def remove_first(file, operation):
        if not flock:
            (tmp_path / ".lock").unlink()
        flock.append(operation)
        lock(file, operation)

    monkeypatch.setattr(fcntl, "flock", remove_first)
    with reopen(tmp_path) as handle:
        assert len(flock) == 2
        assert os.path.samestat(os.fstat(handle.lock.fileno()), os.stat(tmp_path / ".lock"))
        with pytest.raises(RecordError, match="another process"):
            reopen(tmp_path)


def test_impossible_folders_are_refused_before_computing(tmp_path):
    (tmp_path / "file").write_text("x")
    for path in [tmp_path / "file", tmp_path / "file" / "run", tmp_path / ("x" * 300)]:
        with pytest.raises(RecordError, match="choose a folder that can be created and written"):
            reopen(path)
    with pytest.raises(RecordError, match="holds no run"):
        load_run(tmp_path / "file" / "run")
    assert contents(tmp_path) == {"file": b"x"}


@pytest.mark.parametrize(
    ("error", "status"),
    [(None, "interrupted"), (KeyboardInterrupt, "interrupted"), (ArithmeticError, "failed")],
)
def test_a_block_that_does_not_close_its_run_leaves_it_resumable(tmp_path, error, status):
    def block():
        with reopen(tmp_path) as handle:
            save_checkpoint(handle, {"x": np.ones(2)}, {"step": 9})
            if error is not None:
                raise error

    if error is None:
        block()
    else:
        with pytest.raises(error):
            block()
    assert load_run(tmp_path).manifest["status"] == status
    assert kept_checkpoint(tmp_path)[1] == {"step": 9}


def test_arrays_of_an_interrupted_run_can_be_read_until_it_is_resumed(tmp_path):
    with reopen(tmp_path) as handle:
        close_run(handle, {"x": np.ones(2)}, {"loss": 1.0}, "interrupted")
    stored = load_run(tmp_path)
    assert (stored.arrays["x"].tolist(), stored.manifest["results"]) == ([1.0, 1.0], {"loss": 1.0})
    with reopen(tmp_path) as handle:
        stored = load_run(tmp_path)
        assert (stored.manifest["status"], stored.arrays) == ("running", {})
        assert load_checkpoint(handle) is None


# The source's commit


def test_commit_and_dirty_flag_follow_the_checkout_and_never_raise(tmp_path, monkeypatch):
    source = sessions._source.__wrapped__
    monkeypatch.setattr(sessions, "__file__", str(tmp_path / "ufm" / "runs" / "sessions.py"))
    assert source() == {"commit": None, "dirty": None}
    (tmp_path / "ufm").mkdir()
    (tmp_path / "ufm" / "sessions.py").write_text("1")

    def git(*arguments):
        name = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
        command = ["git", "-C", str(tmp_path), *name, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    git("init")
    assert source() == {"commit": None, "dirty": None}
    git("add", "-A")
    git("commit", "-m", "first")
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "elsewhere"))
    clean = {"commit": None, "dirty": False}
    with monkeypatch.context() as without:
        without.delenv("GIT_DIR")
        clean["commit"] = git("rev-parse", "HEAD")
    assert source() == clean
    (tmp_path / "figure.pdf").write_text("not source")
    assert source() == clean
    (tmp_path / "new.py").write_text("2")
    assert source() == {**clean, "dirty": True}
    monkeypatch.setenv("PATH", "")
    assert source() == {"commit": None, "dirty": None}


# Crashes


def run_to_the_end(folder, report=lambda *_: None):
    """Start or resume, checkpoint up to step 2, close; report each step once it is safe."""
    with reopen(folder) as handle:
        if handle.status == "complete":
            return
        kept = load_checkpoint(handle)
        for step in range(1 if kept is None else kept[1]["step"] + 1, 3):
            save_checkpoint(handle, {"x": np.full(3, float(step))}, {"step": step})
            report(step)
        close_run(handle, {"x": np.full(3, 2.0)}, {"step": 2})


def check_end(folder):
    stored = load_run(folder)
    assert (stored.manifest["status"], stored.arrays["x"].tolist()) == ("complete", [2.0] * 3)
    assert sorted(contents(folder)) == ["arrays.npz", "manifest.json"]


@pytest.mark.parametrize("call", ["replace", "fsync", "unlink"])
def test_a_disk_that_refuses_any_one_call_leaves_a_run_that_resumes(tmp_path, monkeypatch, call):
    succeed = getattr(os, call)
    for refused in range(1000):
        calls = iter(range(1000))

        def sometimes(*arguments, calls=calls, refused=refused):
            if next(calls) == refused:
                raise OSError(28, "No space left on device")
            return succeed(*arguments)

        folder = tmp_path / f"{call}{refused}"
        monkeypatch.setattr(os, call, sometimes)
        failure = None
        try:
            run_to_the_end(folder)
        except RecordError as error:
            failure = str(error)
        assert failure is None or "No space left on device; choose" in failure
        monkeypatch.setattr(os, call, succeed)
        if next(calls) <= refused:
            break
        assert not (folder / ".partial").exists()
        run_to_the_end(folder)
        check_end(folder)
    assert refused >= 2


def prepare(folder, step):
    """Leave an interrupted run at the given step; nothing at step 0."""
    if step:
        with reopen(folder) as handle:
            save_checkpoint(handle, {"x": np.full(3, float(step))}, {"step": step})
            close_run(handle, {"x": np.full(3, float(step))}, {}, "interrupted")


@pytest.mark.parametrize("step", [0, 1])
def test_a_run_resumes_from_every_state_that_its_folder_passes_through(tmp_path, step):
    """A copy taken before a line is what a process would leave that died there."""
    run, reported, seen = tmp_path / "run", [], []
    prepare(run, step)

    def copy():
        if run.exists():
            shutil.copytree(run, tmp_path / f"{len(seen)}")
            seen.append(list(reported))

    former = sys.gettrace()
    trace_lines(run, copy)
    try:
        run_to_the_end(run, reported.append)
    finally:
        sys.settrace(former)
    check_end(run)
    assert len(seen) > 20
    for number, known in enumerate(seen):
        watch(tmp_path / f"{number}", step, known)
        run_to_the_end(tmp_path / f"{number}")
        check_end(tmp_path / f"{number}")


def crash(mode, folder, *arguments):
    """Run this file as a program; what it prints."""
    environment = {**os.environ, "PYTHONPATH": str(Path(record.__file__).parents[2])}
    command = [sys.executable, "-W", "ignore", __file__, mode, str(folder), *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("kills", [4, pytest.param(20, marks=SLOW)])
def test_sigkill_at_random_moments_never_loses_an_acknowledged_checkpoint(tmp_path, kills):
    report = crash("kill", tmp_path, kills)
    assert report["kills"] >= kills
    assert report["steps"] >= kills


@pytest.mark.long
def test_death_at_any_line_of_the_modules_leaves_a_run_that_resumes(tmp_path):
    assert crash("lines", tmp_path)["deaths"] > 40


def watch(folder, acknowledged, reported):
    """Open what a dead child left: its step must be the last one reported, or the next."""
    with reopen(folder) as handle:
        if handle.status == "complete":
            arrays, step = load_run(folder).arrays, load_run(folder).manifest["results"]["step"]
        else:
            arrays, state = load_checkpoint(handle) or ({"x": np.zeros(1)}, {"step": 0})
            step = state["step"]
    assert np.all(arrays["x"] == step), "arrays and state belong to different steps"
    latest = max([acknowledged, *reported])
    assert latest <= step <= latest + 1, f"reported {latest}, kept {step}"
    return step


def fork(child):
    """Run `child(report)` in a fork; its process id, and the end where its reports arrive."""
    read, write = os.pipe()
    process = os.fork()
    if process == 0:
        os.close(read)  # so that a child whose parent is gone breaks its pipe and ends
        try:
            child(lambda step: os.write(write, bytes([step % 256, step // 256])))
        except BaseException:
            sys.excepthook(*sys.exc_info())
            os._exit(1)
        os._exit(0)
    os.close(write)
    return process, read


def collect(process, read):
    """Wait for the child's end; its exit status and the steps it reported."""
    status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    assert status in (0, KILLED, -signal.SIGKILL), "the child failed by itself"
    with os.fdopen(read, "rb") as pipe:
        reports = pipe.read()
    steps = [low + 256 * high for low, high in zip(reports[::2], reports[1::2], strict=True)]
    return status, steps


def checkpoint_for_ever(folder, report):
    handle = reopen(folder)
    kept = load_checkpoint(handle)
    step = 0 if kept is None else kept[1]["step"]
    while True:
        step += 1
        save_checkpoint(handle, {"x": np.full(20_000, float(step))}, {"step": step})
        report(step)


def kill_at_random_moments(folder, least):
    """One run, killed at least so many times, and until it got as far; it must never go back."""
    moments = random.Random()
    step, kills = 0, 0
    while min(kills, step) < int(least):
        process, read = fork(lambda report: checkpoint_for_ever(folder, report))
        if kills % 4:  # otherwise while it opens the run
            select.select([read], [], [], 20)
        time.sleep(moments.uniform(0, 0.03))
        os.kill(process, signal.SIGKILL)
        step = watch(folder, step, collect(process, read)[1])
        kills += 1
    return {"kills": kills, "steps": step}


def trace_lines(folder, act):
    """Call `act` before each line of the modules that finds the folder changed since the last.

    Death elsewhere leaves a folder that was already looked at.
    """
    state = None

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal state
        if frame.f_code.co_filename not in SOURCES:
            return None
        if event == "line":
            files = os.scandir(folder) if folder.exists() else ()
            facts = [(file.name, file.stat()) for file in files]
            # The size as well: two writes may fall into one tick of the disk's clock.
            found = {(name, stat.st_ino, stat.st_size, stat.st_mtime_ns) for name, stat in facts}
            if found != state:
                state = found
                act()
        return trace

    sys.settrace(trace)


def die_at_line(folder, number, report):
    """Run to the end, or be gone at the given change of the folder."""
    left = iter(range(number))
    trace_lines(folder, lambda: None if next(left, None) is not None else os._exit(KILLED))
    run_to_the_end(folder, report)


def die_at_every_line(folder):
    """For each change that a run makes, started or resumed: die there, look, finish the run."""
    os.fsync = lambda *_: None  # a killed process loses nothing that it has written
    deaths = 0
    for step in (0, 1):
        for number in range(1000):
            run = folder / f"{step}-{number}"
            prepare(run, step)
            process, read = fork(functools.partial(die_at_line, run, number))
            code, reported = collect(process, read)
            watch(run, step, reported)
            run_to_the_end(run)
            check_end(run)
            if code == 0:
                break
            deaths += 1
    return {"deaths": deaths}


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    # A backend's threads do not survive a fork.
    cpu = SimpleNamespace(platform="cpu", device_kind="cpu")
    modes = {"kill": kill_at_random_moments, "lines": die_at_every_line}
    with unittest.mock.patch.object(jax, "devices", return_value=[cpu]):
        print(json.dumps(modes[sys.argv[1]](Path(sys.argv[2]), *sys.argv[3:])))
