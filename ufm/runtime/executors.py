"""Independent jobs on any executor of `concurrent.futures`: processes, machines, a cluster."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from typing import Any

from ufm import check
from ufm.check import Refused
from ufm.runtime import processes

# XLA's runtime for CPUs (jaxlib 0.10.2) deadlocks if two programs in float32 run concurrently in
# one process; the workers of an executor may be threads.
_alone = threading.Lock()


def checked(executor: Any) -> Executor:
    """The executor itself.

    Raises:
        Refused: no `concurrent.futures.Executor`.
    """
    if not isinstance(executor, Executor):
        way = ""
        if hasattr(executor, "get_executor"):
            way = f". Give the executor of this {type(executor).__name__}: .get_executor()"
        raise Refused(
            f"got {check.shown(executor)} as executor; allowed: a concurrent.futures.Executor, "
            f"such as dask.distributed.Client(address).get_executor(){way}"
        )
    return executor


def run(
    executor: Executor,
    f: Callable[..., Any],
    jobs: Sequence[tuple],
    keep: Callable[[int, Any], None],
    wake: Callable[[], None],
) -> None:
    """Call keep(i, f(*jobs[i], share)) for every job, in the order in which they end.

    If this is interrupted or a job fails, jobs that have not started are cancelled. The executor is
    left open.

    Args:
        executor: runs the jobs, one at a time in a process, with JAX configured as in this process;
            the devices are those of the worker.
        f: a function at the top level of a module, as in `processes.run`; `share` does nothing.
        jobs: arguments that can be pickled.
        keep: called in this process with number and result, once for each job, even if workers are
            lost.
        wake: called about once a second while jobs run.

    Raises:
        Whatever a job raises, or the executor if it has lost its workers.
    """
    settings = processes.settings()
    running: dict[Future, int] = {}
    try:
        for i, job in enumerate(jobs):
            running[executor.submit(_alone_there, f, job, settings)] = i
        while running:
            for future in wait(running, 1.0, FIRST_COMPLETED).done:
                keep(running.pop(future), future.result())
            wake()
    finally:
        for future in running:
            future.cancel()


def _alone_there(f: Callable[..., Any], job: tuple, settings: dict[str, Any]) -> Any:
    with _alone:
        processes.configure(settings)
        return f(*job, lambda _: None)
