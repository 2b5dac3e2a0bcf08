"""Several processes and one disk: the first process reads and writes, and broadcasts the result.

After `jax.distributed.initialize()` every process runs the same script. The first one accesses the
disk; the others receive its result or its exception. Every process must make the same calls in the
same order. With one process these functions have no effect.
"""

import pickle
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

T = TypeVar("T")


def told(f: Callable[[], T]) -> T:
    """The result of f() in the first process, returned (or its exception raised) in every process.

    Results and exceptions must be picklable.
    """
    if jax.process_count() == 1:
        return f()
    outcome: Any = None
    failed = False
    if jax.process_index() == 0:
        try:
            outcome = f()
        except Exception as error:
            failed, outcome = True, error
    failed, outcome = _exchanged((failed, outcome))[0]
    if failed:
        raise outcome
    return outcome


def whole(x: Any) -> Any:
    """An array that is split over processes, gathered in each of them; others unchanged."""
    if isinstance(x, jax.Array) and not x.is_fully_addressable:
        return np.asarray(multihost_utils.process_allgather(x, tiled=True))
    return x


def _exchanged(x: Any) -> list[Any]:
    data = np.frombuffer(pickle.dumps(x), np.uint8)
    sizes = np.asarray(multihost_utils.process_allgather(np.array([data.size], np.int32))).ravel()
    padded = np.zeros(sizes.max(), np.uint8)
    padded[: data.size] = data
    rows = np.asarray(multihost_utils.process_allgather(padded))
    return [pickle.loads(row[:size].tobytes()) for row, size in zip(rows, sizes, strict=True)]
