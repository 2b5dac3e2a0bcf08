"""float64 for every test; shapes and dtypes of ufm's signatures are checked at run time."""

import itertools
import os
from pathlib import Path

import jax
import pytest
from jaxtyping import install_import_hook

from ufm.runtime import cache
from ufm.runtime.programs import compile_quickly, make_room

# JAX_ENABLE_X64=0 is for tests/test_precision.py, which holds in both settings.
jax.config.update("jax_enable_x64", os.environ.get("JAX_ENABLE_X64", "1") != "0")
# Hundreds of small programs are compiled here and each runs once: compiling is what takes time.
# JAX_DISABLE_MOST_OPTIMIZATIONS=0 compiles them as users run them.
optimised = os.environ.get("JAX_DISABLE_MOST_OPTIMIZATIONS", "1") == "0"
jax.config.update("jax_disable_most_optimizations", not optimised)
if not optimised:
    compile_quickly(level=0)
    os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"  # for the processes that tests start
# What one worker or child process has compiled the others read, and so does the next run. The
# user's own folder is left alone.
PROGRAMS = {
    "jax_compilation_cache_dir": str(
        Path(__file__).parents[1] / ".pytest_cache" / "programs" / cache.folder().name
    ),
    "jax_persistent_cache_min_compile_time_secs": 0.0,
}
if not jax.config.values["jax_compilation_cache_dir"]:
    for name, value in PROGRAMS.items():
        jax.config.update(name, value)
        os.environ[name.upper()] = str(value)
# Not the modules that refuse bad input themselves: their own messages are what is tested.
CHECKED = (
    "critical.newton",
    "descent.loop",
    "descent.minibatch",
    "linalg.minres",
    "losses.crossentropy",
    "model.quotient",
)
install_import_hook([f"ufm.{module}" for module in CHECKED], "beartype.beartype")

_count = itertools.count(1)


def pytest_runtest_teardown():
    """Let go of programs now and then: a process that has compiled thousands would crash."""
    if next(_count) % 20 == 0:
        make_room()


# Tests, and parameters of tests, that take more than two seconds of a core and of whose law
# something faster is left, as far as there is such a thing.
SLOW = frozenset((Path(__file__).parent / "slow.txt").read_text().splitlines())


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config, items):
    """Mark them before `-m` chooses; refuse a list that names a test which is gone."""
    for item in items:
        if item.nodeid in SLOW:
            item.add_marker(pytest.mark.slow)
    if any("::" in argument for argument in config.args):
        return
    files, found = {item.nodeid.partition("::")[0] for item in items}, {x.nodeid for x in items}
    if gone := sorted(x for x in SLOW - found if x.partition("::")[0] in files):
        raise pytest.UsageError(f"tests/slow.txt names tests that are gone: {gone}")
