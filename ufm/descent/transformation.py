"""What optax calls a transformation: two functions, that make a state and an update.

Methods of this package are such pairs without optax. It takes a tenth of a second to import, and
only its own methods need it; modules that offer those import it where they do.
"""

from collections.abc import Callable
from typing import Any, NamedTuple


class Transformation(NamedTuple):
    """As `optax.GradientTransformationExtraArgs`.

    init: params ↦ state.
    update: (updates, state, params, **further) ↦ (updates, state).
    """

    init: Callable[[Any], Any]
    update: Callable[..., tuple[Any, Any]]
