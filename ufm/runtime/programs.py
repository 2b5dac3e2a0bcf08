"""How long programs take to compile on a CPU, and how much room they take once they are.

XLA has two generations of code that writes kernels. The older one compiles a program in two thirds
of the time and 100 to 250 MiB less memory; small steps and objectives of what it writes take up to
twice as long, products and factorisations the same. It is for programs whose compiling is what
takes time.
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
# A flag's name is no promise, and an unknown one ends the process: it is set where it was tried.
_TRIED, _NEWER, _LEVEL = "0.10.2", "xla_cpu_use_fusion_emitters", "xla_backend_optimization_level"


def options() -> dict[str, Any]:
    """`compiler_options` of `jax.jit` for a program that is quick to compile; {} where none are.

    Level 1 of LLVM's optimisation compiles these in 85 % of the time of level 3, and what it makes
    of them is as fast. Where JAX is told to leave most optimisations out the level stays at 0.
    """
    if metadata.version("jaxlib") != _TRIED or jax.default_backend() != "cpu":
        return {}
    least = jax.config.values["jax_disable_most_optimizations"]
    return {_NEWER: False} | ({} if least else {_LEVEL: 1})


def once(f: Callable, level: int = 0, **static: Any) -> Callable:
    """`jax.jit(f, **static)` for a program that runs once in a study: LLVM optimises it less, too.

    Inside another jit or a gradient, which take no options, it is `jax.jit(f, **static)`.

    Args:
        level: of LLVM's optimisation, 0 to 3. At 0 the last digits of random draws are others.
    """
    plain = jax.jit(f, **static)

    @functools.cache
    def quick() -> Callable:
        less = {_LEVEL: level} if options() else {}
        return jax.jit(f, compiler_options=options() | less, **static)

    @functools.wraps(f)
    def call(*args: Any, **keywords: Any) -> Any:
        # Inside a jit constants are values of it as well.
        inside = check.traced(args, keywords, jax.device_put(0.0))
        return (plain if inside else quick())(*args, **keywords)

    return call


def compile_apart(program: Any, *args: Any) -> None:
    """Compile a jitted function before it is called, and give back the memory that this took.

    glibc keeps what XLA's compiler has freed, a hundred MiB; the run would be put beside it.
    """
    program.lower(*args).compile()
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


def compile_quickly() -> None:
    """Let all programs of this process, and of those it starts, be quick to compile.

    To be called before JAX has compiled anything. A flag that the user has set stays.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if metadata.version("jaxlib") == _TRIED and _NEWER not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} --{_NEWER}=false".strip()


def make_room() -> None:
    """Let go of JAX's compiled programs once this process holds half of the maps allowed.

    On a CPU a shape of a sweep takes about a thousand of 65,530; past the limit compiling fails,
    and the process with it. What is still wanted is compiled again. Nothing is done where the
    system does not tell.
    """
    try:
        held, allowed = MAPS.read_bytes().count(b"\n"), int(LIMIT.read_text())
    except OSError:
        return
    if held > allowed // 2:
        jax.clear_caches()
