"""Independent jobs in this process and, if they take long, in one process a core.

Processes and not threads: XLA's runtime for CPUs (jaxlib 0.10.2) deadlocks if two programs in
float32 run concurrently in one process.
"""

import contextlib
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from multiprocessing import resource_tracker
from typing import Any

import jax
from loky import ProcessPoolExecutor

PATIENCE = 4.0  # seconds, about as long as a process takes to import and compile
WATCH = 0.5  # seconds between checks whether the parent process is alive
# The part of JAX's configuration that determines the results, and the cache of programs.
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
FLAGS = ("jax_disable_most_optimizations",)  # those that JAX returns only by `read`


def run(
    f: Callable[..., Any],
    jobs: Sequence[tuple],
    processes: int,
    keep: Callable[[int, Any], None],
    watch: Callable[[int, float], None],
    patience: float | None = None,
) -> None:
    """Call keep(i, f(*jobs[i], share)) for every job, in the order in which they end.

    If this is interrupted, unfinished jobs are abandoned.

    Args:
        f: a function at the top level of a module. It calls `share(part)` about once a second, with
            the share of the job that is done.
        jobs: arguments that can be pickled.
        processes: most jobs at a time. JAX is configured in the other processes as in this one, on
            CPUs.
        keep: called with the number and the result of a job.
        watch: called with the number of the job of this process and the share of it that is done.
        patience: seconds after which the other processes are started, by default `PATIENCE`.
    """
    begun = time.monotonic()
    waiting, running = deque(range(len(jobs))), dict[Future, int]()
    others: ProcessPoolExecutor | None = None
    late = begun + (PATIENCE if patience is None else patience)

    def serve(seconds: float = 0.0) -> None:
        nonlocal others
        if others is None and time.monotonic() >= late and waiting and processes > 1:
            others = _started(min(processes - 1, len(waiting)))
        # With a second job in its queue a process need not wait for this one; the last jobs are
        # not queued but go to the first process that is free.
        ahead = 2 if len(waiting) > processes else 1
        while others and waiting and len(running) < ahead * (processes - 1):
            i = waiting.popleft()
            with _interrupts_blocked():
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


def _started(processes: int) -> ProcessPoolExecutor:
    """Processes configured as this one; they start at the first job."""
    return ProcessPoolExecutor(
        processes, timeout=60, initializer=_begin, initargs=(settings(), os.getpid())
    )


@contextlib.contextmanager
def _interrupts_blocked() -> Iterator[None]:
    """Processes started here inherit the mask: until `_begin`, too, Ctrl-C is not for them."""
    if not hasattr(signal, "pthread_sigmask"):  # not on Windows
        yield
        return
    # The first process would start the tracker, after which Python 3.11 lifts the block.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _begin(chosen: dict[str, Any], parent: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that collects
    # A thread, since compiling takes long and returns to Python only at its end.
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    jax.config.update("jax_platforms", "cpu")
    configure(chosen)


def configure(chosen: dict[str, Any]) -> None:
    """Configure JAX by the `settings` of another process."""
    for name, value in chosen.items() - settings().items():
        jax.config.update(name, value)


def settings() -> dict[str, Any]:
    """The part of JAX's configuration that determines the results, by name."""
    found = {name: getattr(jax.config, name) for name in SETTINGS}
    return found | {name: jax.config.read(name) for name in FLAGS}


def _end_with(parent: int) -> None:
    """End this process once its parent has ended, as no process needs the result."""
    while os.getppid() == parent:
        time.sleep(WATCH)
    os._exit(1)


def _apart(f: Callable[..., Any], job: tuple) -> Any:
    return f(*job, lambda _: None)
