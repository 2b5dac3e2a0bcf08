"""The time that programs take to compile on a CPU, and the memory that they take afterwards.

XLA has two generations of code generators. The older one compiles a program in two thirds of the
time and with 100 to 250 MiB less memory; its small steps and objectives take up to twice as long to
run, products and factorisations the same. It is for programs that take longer to compile than to
run.
"""

import contextlib
import ctypes
import functools
import os
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

from ufm import check

MAPS, LIMIT = Path("/proc/self/maps"), Path("/proc/sys/vm/max_map_count")
# Flags may be renamed, and an unknown one ends the process: it is set only for the tested version.
_TRIED, _NEWER, _LEVEL = "0.10.2", "xla_cpu_use_fusion_emitters", "xla_backend_optimization_level"

# At level 0 LLVM takes less time than XLA, which then need not split the program for its threads
# nor look for what loops do not change.
_PASSES, _LOOPS = "xla_disable_hlo_passes", "while-loop-invariant-code-motion,simplify-while-loops"
_SPLIT = "xla_cpu_parallel_codegen_split_count"
_BRIEF = {_SPLIT: 1, _PASSES: _LOOPS}
# XLA's own values, but for the level.
_LONG = {_LEVEL: 1, _SPLIT: 32, _PASSES: ""}
# The level that `compile_quickly` has set, in this process or the one that started it.
_OWN = "UFM_COMPILE_LEVEL"


def options(level: int = 1) -> dict[str, Any]:
    """`compiler_options` of `jax.jit` for faster compilation; {} if there are none.

    Level 1 of LLVM's optimisation compiles such programs in 85 % of the time of level 3, and they
    run as fast; level 0 in half of that time, and they run two to four times as long. A level that
    the user has chosen, or 0 by JAX's own option to disable most optimisations, stays, and so does
    a lower one of `compile_quickly`.
    """
    if metadata.version("jaxlib") != _TRIED or jax.default_backend() != "cpu":
        return {}
    flags, own = os.environ.get("XLA_FLAGS", ""), os.environ.get(_OWN)
    chosen = _LEVEL in flags and (own is None or level >= int(own))
    if chosen or jax.config.values["jax_disable_most_optimizations"]:
        return {_NEWER: False}
    return {_NEWER: False} | _of_level(level, flags)


def of_short_sums() -> dict[str, Any]:
    """The options of level 1 for a program whose sums have some thousand terms at most.

    They are added one after the other and not in a tree: it compiles in 80 % of the time, and runs
    in 80 %.
    """
    found, flags = options(), os.environ.get("XLA_FLAGS", "")
    short = {_SPLIT: 4, _PASSES: f"{_LOOPS},tree_reduction_rewriter"} if found else {}
    return found | {name: value for name, value in short.items() if name not in flags}


def quickest() -> dict[str, Any]:
    """The options of level 0; {} where there are none, or the process has this level anyway."""
    found = options(level=0)
    return found if _LEVEL in found else {}


def _of_level(level: int, flags: str = "") -> dict[str, Any]:
    """The options of a level, without those that the flags set."""
    less = _BRIEF if level == 0 else {}
    return {_LEVEL: level} | {name: value for name, value in less.items() if name not in flags}


def for_long_runs(f: Callable, **static: Any) -> Callable:
    """`jax.jit(f, **static)` for a program that runs for seconds even in a quick experiment.

    Level 1 of LLVM's optimisation where the process has chosen level 0, at which a loop of small
    steps takes up to four times as long.
    """

    @functools.cache
    def program() -> Callable:
        quick = options() and f"{_LEVEL}=0" in os.environ.get("XLA_FLAGS", "")
        return jax.jit(f, compiler_options=_LONG if quick else {}, **static)

    @functools.wraps(f)
    def call(*args: Any, **keywords: Any) -> Any:
        return program()(*args, **keywords)

    return call


def once(f: Callable, level: int = 0, **static: Any) -> Callable:
    """`jax.jit(f, **static)` for a program that runs only once, compiled with less optimisation.

    Inside another jit or a gradient, where options are not allowed, it is `jax.jit(f, **static)`.

    Args:
        f: as for `jax.jit`.
        level: of LLVM's optimisation, 0 to 3. At 0 the last digits of random draws change.
        static: options of `jax.jit`, such as static_argnames.
    """
    plain = jax.jit(f, **static)

    @functools.cache
    def quick() -> Callable:
        less = _of_level(level, os.environ.get("XLA_FLAGS", "")) if options() else {}
        return jax.jit(f, compiler_options=options() | less, **static)

    @functools.wraps(f)
    def call(*args: Any, **keywords: Any) -> Any:
        # Inside a jit even constants are traced.
        inside = check.traced(args, keywords, jax.device_put(0.0))
        return (plain if inside else quick())(*args, **keywords)

    return call


def compile_apart(program: Any, *args: Any) -> None:
    """Compile a jitted function before it is called, and return the memory of the compiler.

    glibc keeps what XLA's compiler has freed, about 100 MiB, in addition to that of the run.
    """
    program.lower(*args).compile()
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


def compile_quickly(level: int | None = None) -> None:
    """Use the faster compiler for all programs of this process and of those that it starts.

    To be called before JAX has compiled anything. A flag that the user has set stays.

    Args:
        level: of LLVM's optimisation. 0 compiles in two thirds of the time of 3, and small steps
            run up to four times as long. None: that of every program.
    """
    if metadata.version("jaxlib") != _TRIED:
        return
    wanted: dict[str, Any] = {_NEWER: "false"}
    if level is not None and _LEVEL not in os.environ.get("XLA_FLAGS", ""):
        wanted |= _of_level(level)
    for name, value in wanted.items():
        flags = os.environ.get("XLA_FLAGS", "")
        if name not in flags:
            os.environ["XLA_FLAGS"] = f"{flags} --{name}={value}".strip()
            if name == _LEVEL:
                os.environ[_OWN] = str(value)


def make_room() -> None:
    """Free JAX's compiled programs once this process has half of the memory maps that Linux allows.

    On a CPU a shape of a sweep takes about a thousand of 65,530; beyond the limit compiling fails
    and the process crashes. Programs that are needed again are compiled again. Does nothing on
    other systems.
    """
    try:
        held, allowed = MAPS.read_bytes().count(b"\n"), int(LIMIT.read_text())
    except OSError:
        return
    if held > allowed // 2:
        jax.clear_caches()
