"""Counting what JAX compiles."""

import contextlib
from collections.abc import Iterator

import jax

EVENT = "/jax/core/compile/backend_compile_duration"  # one a program that XLA is given


@contextlib.contextmanager
def compilations() -> Iterator[list[float]]:
    """The seconds of every compilation inside the block, one entry each."""
    found: list[float] = []

    def listen(event: str, seconds: float, **_) -> None:
        if event == EVENT:
            found.append(seconds)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield found
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
