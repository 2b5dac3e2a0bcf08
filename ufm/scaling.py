"""Powers of two that bring numbers to the order of 1, so that squares neither overflow nor vanish.

Squares of float64 numbers beyond 1e±154 are no float64 numbers, of float32 beyond 1e±19. What is
made of squares is therefore made of x/s, with s the power of two just below the largest |x|.
Dividing by a power of two is exact: wherever nothing over- or underflowed, every digit stays the
same. XLA takes subnormal numbers for 0, and so does everything here.
"""

from types import ModuleType
from typing import Any

import numpy as np


def binade(xp: ModuleType, *arrays: Any) -> Any:
    """The power of two s with s ≤ max|x| < 2s; s and 1/s are normal numbers. Traceable.

    Args:
        xp: numpy or jax.numpy.
        arrays: of one floating dtype.

    Returns:
        s, a scalar of that dtype: 1 if all entries are 0 or one of them is not finite, and at most
        1/(smallest normal number), so that max|x| < 4s always.
    """
    top = arrays[0].dtype.type(0)
    for x in arrays:
        x = xp.abs(x)
        while x.ndim:  # axis by axis: XLA does not use the vector units for one long reduction
            x = xp.max(x, axis=0)
        top = xp.maximum(top, x)
    info = xp.finfo(top.dtype)
    bits = np.dtype(f"u{top.dtype.itemsize}")
    exponent = bits.type(((1 << info.nexp) - 1) << info.nmant)
    s = (top.view(bits) & exponent).view(top.dtype)
    s = xp.where((s > 0) & (s < xp.inf), s, 1)
    return xp.minimum(s, 1 / info.tiny).astype(top.dtype)
