"""Independent jobs in this process and, where they take long, in one process a core.

Processes and not threads: XLA's runtime for CPUs (jaxlib 0.10.2) waits for ever where two programs
in float32 run at a time in one process.
"""

import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from typing import Any

import jax
from loky import ProcessPoolExecutor

PATIENCE = 4.0  # seconds; a process needs as long to import and compile
WATCH = 0.5  # seconds between two looks for the process that collects
# What of JAX's configuration decides the numbers and where programs are kept.
SETTINGS = (
    "jax_enable_x64",
    "jax_default_matmul_precision",
    "jax_numpy_dtype_promotion",
    "jax_numpy_rank_promotion",
    "jax_default_prng_impl",
    "jax_threefry_partitionable",
    "jax_disable_jit",
    "jax_debug_nans",
    "jax_debug_infs",
    "jax_compilation_cache_dir",
    "jax_persistent_cache_min_compile_time_secs",
    "jax_persistent_cache_min_entry_size_bytes",
)
FLAGS = ("jax_disable_most_optimizations",)  # those that JAX gives by `read` alone


def run(
    f: Callable[..., Any],
    jobs: Sequence[tuple],
    processes: int,
    keep: Callable[[int, Any], None],
    watch: Callable[[int, float], None],
    patience: float | None = None,
) -> None:
    """keep(i, f(*jobs[i], share)) for every job, in the order in which they end.

    Where this is interrupted, jobs that have not ended are given up.

    Args:
        f: a function of a module. It calls `share(part)` about once a second, with the part of the
            job that is done.
        jobs: arguments that can be pickled.
        processes: most jobs at a time. The other processes have the settings of JAX of this one,
            and are on CPUs.
        keep: takes number and result of a job.
        watch: called with the job of this process and the part of it that is done.
        patience: seconds after which the other processes are started, by default `PATIENCE`.
    """
    begun = time.monotonic()
    waiting, running = deque(range(len(jobs))), dict[Future, int]()
    others: ProcessPoolExecutor | None = None
    late = begun + (PATIENCE if patience is None else patience)

    def serve(seconds: float = 0.0) -> None:
        nonlocal others
        if others is None and time.monotonic() >= late and waiting and processes > 1:
            others = ProcessPoolExecutor(
                min(processes - 1, len(waiting)),
                timeout=60,
                initializer=_begin,
                initargs=(settings(), os.getpid()),
            )
        # A second job in hand spares a process the wait for this one; the last jobs go to whoever
        # is free.
        ahead = 2 if len(waiting) > processes else 1
        while others and waiting and len(running) < ahead * (processes - 1):
            i = waiting.popleft()
            running[others.submit(_apart, f, jobs[i])] = i
        for future in wait(running, seconds, FIRST_COMPLETED).done:
            keep(running.pop(future), future.result())

    def share(part: float) -> None:
        watch(mine, part)
        serve()

    try:
        serve()
        while waiting:
            mine = waiting.popleft()
            keep(mine, f(*jobs[mine], share))
            serve()
        while running:
            serve(1.0)
    finally:
        if others is not None:
            others.shutdown(kill_workers=True)


def _begin(chosen: dict[str, Any], parent: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that collects
    # A thread, since compiling takes long and returns to Python only at its end.
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    jax.config.update("jax_platforms", "cpu")
    configure(chosen)


def configure(chosen: dict[str, Any]) -> None:
    """Give JAX the settings of another process."""
    for name, value in chosen.items() - settings().items():
        jax.config.update(name, value)


def settings() -> dict[str, Any]:
    """JAX's configuration, as far as it decides what is computed."""
    found = {name: getattr(jax.config, name) for name in SETTINGS}
    return found | {name: jax.config.read(name) for name in FLAGS}


def _end_with(parent: int) -> None:
    """End this process once its parent is gone: nobody is left to take the result."""
    while os.getppid() == parent:
        time.sleep(WATCH)
    os._exit(1)


def _apart(f: Callable[..., Any], job: tuple) -> Any:
    return f(*job, lambda _: None)
