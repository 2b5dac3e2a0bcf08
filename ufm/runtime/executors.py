"""Independent jobs on any executor of `concurrent.futures`: processes, machines, a cluster."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from typing import Any

from ufm import check
from ufm.check import Refused
from ufm.runtime import processes

# XLA's runtime for CPUs (jaxlib 0.10.2) waits for ever where two programs in float32 run at a time
# in one process; the workers of an executor may be threads.
_alone = threading.Lock()


def checked(executor: Any) -> Executor:
    """The executor, or a refusal of what is none."""
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
    """keep(i, f(*jobs[i], share)) for every job, in the order in which they end.

    Where this is interrupted or a job fails, those that have not begun are cancelled. The executor
    is left open.

    Args:
        executor: runs each job once, one at a time in a process, under this process's settings of
            JAX but for its devices, which are the worker's.
        f: a function of a module, as in `processes.run`; `share` does nothing.
        jobs: arguments that can be pickled.
        keep: takes number and result of a job, here, each once, whatever workers were lost.
        wake: called about once a second while jobs run.

    Raises:
        Whatever a job raises, or the executor where it has lost its workers for good.
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
