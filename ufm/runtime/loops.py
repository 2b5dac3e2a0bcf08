"""Loops whose number of steps only the running program knows.

Before each turn of such a loop a GPU reports to the host whether there is another one, which takes
longer than a small step of descent does. A loop whose length is a constant of the program needs no
report.
"""

from collections.abc import Callable
from typing import Any

import jax

# Steps that are taken between two reports. On a CPU, which has nobody to report to, a second copy
# of the step would only be compiled.
STRIDE = {"cpu": 1}
_ELSEWHERE = 16


def repeat(count: Any, advance: Callable[[Any], Any], state: Any) -> Any:
    """`advance` applied `count` times to `state`. Traceable, and so may be `count`."""

    def ahead(_: Any, state: Any) -> Any:
        return advance(state)

    stride = STRIDE.get(jax.default_backend(), _ELSEWHERE)
    if stride == 1:
        return jax.lax.fori_loop(0, count, ahead, state)

    def several(_: Any, state: Any) -> Any:
        return jax.lax.fori_loop(0, stride, ahead, state)

    state = jax.lax.fori_loop(0, count // stride, several, state)
    return jax.lax.fori_loop(0, count % stride, ahead, state)
