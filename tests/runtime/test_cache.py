"""Compiled programs between processes: used again, bounded, only on demand, and never unasked."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from ufm.runtime import cache

COUNTED = """
import atexit, collections, json, sys
import jax
from ufm import cli
seen = collections.Counter()
jax.monitoring.register_event_listener(lambda event, **_: seen.update([event.rpartition("/")[2]]))

def told():
    print(json.dumps({name: seen["cache_" + name] for name in ("hits", "misses")}), file=sys.stderr)

atexit.register(told)
cli.run()
"""
SMALL = ["descend", "--K", "2", "--d", "2", "--n", "2", "--optimizer", "gd", "--steps", "20"]


def command(home, *further, code=COUNTED, **environment):
    """Hits and misses of JAX's cache in a process that is the command."""
    known = {name: x for name, x in os.environ.items() if not name.startswith("JAX_")}
    done = subprocess.run(
        [sys.executable, "-c", code, *SMALL, *further],
        env=known | {"XDG_CACHE_HOME": str(home)} | environment,
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    counts = json.loads(done.stderr.strip().splitlines()[-1])
    return counts, done.stdout


def test_the_second_run_of_a_command_compiles_nothing_anew(tmp_path):
    first, told = command(tmp_path / "home", "--json")
    assert first["misses"] > 5
    again, same = command(tmp_path / "home", "--json")
    assert again == {"hits": first["hits"] + first["misses"], "misses": 0}
    assert json.loads(same) == json.loads(told)


def test_without_the_cache_nothing_is_written(tmp_path):
    counts, _ = command(tmp_path / "home", "--no-cache")
    assert counts == {"hits": 0, "misses": 0}
    assert not (tmp_path / "home").exists()
    own = tmp_path / "own"
    command(tmp_path / "home", JAX_COMPILATION_CACHE_DIR=str(own))  # the user's own is left alone
    assert not (tmp_path / "home").exists()
    home = tmp_path / "file"
    home.write_text("no folder")
    assert command(home)[0] == {"hits": 0, "misses": 0}


def test_the_library_by_itself_keeps_nothing(tmp_path):
    code = "import jax, ufm; ufm.theory; print(jax.config.jax_compilation_cache_dir)"
    environment = {name: x for name, x in os.environ.items() if not name.startswith("JAX_")}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment | {"XDG_CACHE_HOME": str(tmp_path)},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.strip() == "None"
    assert not list(tmp_path.iterdir())


def test_the_folder_is_below_the_cache_of_the_user(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache.folder().parent == tmp_path / "ufm"
    for unset in ("", "relative"):  # the standard asks for absolute paths
        monkeypatch.setenv("XDG_CACHE_HOME", unset)
        assert cache.folder().parent == Path.home() / ".cache" / "ufm"


def test_what_was_used_longest_ago_is_deleted_first(tmp_path):
    for age, name in enumerate(("new", "middle", "old")):
        path = tmp_path / name
        path.write_bytes(bytes(100))
        os.utime(path, (1e9 - age, 1e9 - age))
    cache.prune(tmp_path, 300)
    assert len(list(tmp_path.iterdir())) == 3
    cache.prune(tmp_path, 250)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["middle", "new"]


@pytest.mark.parametrize("enabled", [True, False])
def test_a_process_that_set_or_switched_off_the_cache_is_left_alone(enabled, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    names = ("jax_enable_compilation_cache", "jax_compilation_cache_dir")
    before = {name: jax.config.values[name] for name in names}
    kept = str(tmp_path / "own") if enabled else None
    for name, value in zip(names, (enabled, kept), strict=True):
        jax.config.update(name, value)
    try:
        cache.keep()
        assert jax.config.jax_compilation_cache_dir == kept
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
    assert not list(tmp_path.iterdir())
