"""One thread for LAPACK where its calls alternate with compiled loops of XLA.

Threads of BLAS wait by spinning, and on a few cores they then take the time of XLA's own: a record
of descent at (K, d, n) = (100, 128, 100) took 32 ms with two of them and 14 ms with one.
"""

import functools
from contextlib import AbstractContextManager

import scipy.linalg  # noqa: F401  (jax calls its LAPACK; a search finds loaded libraries only)
from threadpoolctl import ThreadpoolController


def lapack_on_one_thread() -> AbstractContextManager:
    """A context in which LAPACK and the BLAS below it run on the calling thread alone."""
    return _controller().limit(limits=1, user_api="blas")


@functools.cache
def _controller() -> ThreadpoolController:
    """The controller, created once: finding the loaded libraries takes milliseconds."""
    return ThreadpoolController()
