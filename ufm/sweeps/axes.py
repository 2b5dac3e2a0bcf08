"""The axes of a grid, and how a value of each is converted to Python's numbers."""

from collections.abc import Callable, Mapping
from typing import Any

from ufm import check
from ufm.check import MOST, Refused
from ufm.descent import factories, optimizers
from ufm.losses import names as losses
from ufm.model.fields import FEATURES, fixed_parts


def _size(name: str) -> Callable[[Any], int]:
    return lambda x: check.integer(name, x, 1, MOST)


def _decay(name: str) -> Callable[[Any], float]:
    return lambda x: check.real(name, x, least=0)


def _counts(x: Any) -> int | tuple[int, ...]:
    """One value of the axis n: a number of samples a class, or [50, 10, 5], one count a class."""
    each = check.several(x)
    if each is None:
        return check.integer("n", x, 1, MOST)
    counts = tuple(check.integer(f"n[{k}]", m, 1, MOST) for k, m in enumerate(each))
    return counts[0] if len(counts) == 1 else counts


def _rate(x: Any) -> float | str | None:
    if callable(x):
        raise Refused(
            f"got learning_rate={check.shown(x)}; allowed in a grid: a number > 0, 'auto', 'safe' "
            "or None. A row could not name a schedule; run it with ufm.descend"
        )
    if x is None or (isinstance(x, str) and x in optimizers.STEPS):
        return x
    return check.real("learning_rate", x, above=0, also="'auto', 'safe' or None")


def _weights(name: str) -> Callable[[Any], Any]:
    """One value of an axis of weights: None, or one number a class."""

    def convert(x: Any) -> tuple[float, ...] | None:
        if x is None:
            return None
        each = check.several(x)
        if each is None:
            raise Refused(
                f"got {name}={check.shown(x)}; allowed: {name} = [[1, 1, 5]], one number a class, "
                "a problem for each list"
            )
        return tuple(check.real(f"{name}[{k}]", c, above=0) for k, c in enumerate(each))

    return convert


def _optimizer(x: Any) -> str:
    """The name of a method: of this package, or of a factory of optax."""
    if isinstance(x, str) and x in optimizers.NAMES:
        return x
    return factories.name_of(x, optimizers.NAMES)


def options(given: Any) -> tuple[tuple[str, tuple[Any, ...]], ...]:
    """The further hyperparameters, sorted by name, each with its values.

    Args:
        given: a dict of one value or several by name, or the result of an earlier call.

    Raises:
        Refused: no dict, no value, or a value that JSON cannot hold.
    """
    if isinstance(given, tuple) and all(isinstance(pair, tuple) for pair in given):
        given = dict(given)  # converted already
    if not isinstance(given, Mapping):
        raise Refused(
            f"got options={check.shown(given)}; allowed: hyperparameters by name, each with one "
            "value or several, such as {'b2': [0.9, 0.99]}"
        )
    found = []
    for name, x in sorted(given.items(), key=lambda pair: str(pair[0])):
        several = check.several(x)
        values = tuple(map(check.host, [x] if several is None else several))
        odd = [x for x in values if not isinstance(x, bool | int | float | str | None)]
        if odd or not values or not isinstance(name, str):
            raise Refused(
                f"got options with {name}={check.shown(x)}; allowed: one value or more, each a "
                "number, True, False, text or None. Run a schedule with ufm.descend"
            )
        found.append((name, values))
    return tuple(found)


# Every axis, with the function that converts one of its values when a grid is made.
AXES: dict[str, Callable[[Any], Any]] = {
    "K": _size("K"),
    "d": _size("d"),
    "n": _counts,
    "lam": _decay("lam"),
    "lam_W": _decay("lam_W"),
    "lam_H": _decay("lam_H"),
    "lam_b": _decay("lam_b"),
    "bias": lambda x: check.flag("bias", x),
    "loss": losses.named,
    "weights": _weights("weights"),
    "decay_weights": _weights("decay_weights"),
    "targets": lambda x: x,  # checked where K is known
    "features": lambda x: check.choice("features", x, FEATURES),
    "fixed": fixed_parts,
    "optimizer": _optimizer,
    "learning_rate": _rate,
    "momentum": lambda x: None if x is None else check.real("momentum", x, least=0, below=1),
    "batch_size": lambda x: None if x is None else check.integer("batch_size", x, 1, MOST),
    "seed": lambda x: check.integer("seed", x, 0, 2**32 - 1),
}
