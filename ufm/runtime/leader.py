"""Several processes and one disk: what the first process does there, all of them learn.

After `jax.distributed.initialize()` every process runs the same script. What belongs to the disk is
done by the first; the others get what it found, or its exception. Every process must make the same
calls in the same order. With one process nothing here does anything.
"""

import pickle
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

T = TypeVar("T")


def told(f: Callable[[], T]) -> T:
    """f() as the first process alone computes it, returned or raised in every process.

    What f returns or raises must be fit to be pickled.
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
    """An array whose pieces lie with several processes, in every process; others as they are."""
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
