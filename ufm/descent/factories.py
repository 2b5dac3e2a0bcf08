"""Optax's factories, such as `optax.adamw`: found by name, with traced hyperparameters.

A factory takes hyperparameters and returns a transformation. Real numbers among them are arguments
of the compiled program, so that all learning rates share one program; everything else (flags,
integers, schedules, masks) is compiled in and compared by content (`ufm.descent.content`).
"""

import difflib
import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax

from ufm import check
from ufm.check import Refused
from ufm.descent.content import ByContent, by_content

Factory = Callable[..., Any]  # of an optax transformation
Static = tuple[tuple[str, ByContent], ...]


@functools.cache
def names() -> tuple[str, ...]:
    """The names of optax's factories that take a learning rate, sorted."""
    import optax

    found = []
    for name, f in vars(optax).items():
        if name.startswith(("_", "scale_by")) or not inspect.isfunction(f):
            continue
        if "learning_rate" in inspect.signature(f).parameters:
            found.append(name)
    return tuple(sorted(found))


def named(name: str, own: tuple[str, ...]) -> Factory:
    """A factory of optax by its name, "adamw" or "optax.adamw".

    Args:
        name: with "optax." where the name alone is one of `own`.
        own: the names of this package's methods, for the message.

    Raises:
        Refused: no such factory; the message suggests the nearest name.
    """
    import optax

    bare = name.removeprefix("optax.")
    if bare in names():
        return getattr(optax, bare)
    near = difflib.get_close_matches(bare.lower(), [*own, *names()], n=1)
    hint = f". Did you mean {near[0]!r}?" if near else ""
    raise Refused(
        f"got optimizer={name!r}; allowed: {', '.join(own)}, a factory of optax by name or as a "
        f"function, such as 'adamw' or optax.adamw, or a transformation{hint}"
    )


def name_of(factory: Any, own: tuple[str, ...]) -> str:
    """The name by which `named` finds a factory of optax, given as a function or by name.

    Raises:
        Refused: no factory of optax.
    """
    import optax

    if isinstance(factory, str):
        factory = named(factory, own)
    name = getattr(factory, "__name__", "")
    if name not in names() or getattr(optax, name) is not factory:
        raise Refused(
            f"got optimizer={check.shown(factory)}; allowed in a grid: {', '.join(own)}, or a "
            "factory of optax, such as 'adamw' or optax.adamw. A row could not name another; run "
            "it with ufm.descend"
        )
    return f"optax.{name}" if name in own else name


def checked(factory: Factory, given: Mapping[str, Any]) -> dict[str, float | ByContent]:
    """Hyperparameters of a factory, converted: traced ones as floats, others with their content.

    A number is traced if it or its default is a float, or if it is a learning rate.

    Raises:
        Refused: a hyperparameter that the factory does not have or cannot use, or a missing one; a
            factory that branches on a number while it builds, or that returns no transformation.
    """
    told = getattr(factory, "__name__", check.shown(factory))
    try:
        signature = inspect.signature(factory)
        signature.bind(**given)
    except (TypeError, ValueError) as error:
        raise Refused(f"got {told} with {sorted(given) or 'nothing'}: {error}") from None
    values: dict[str, float | ByContent] = {}
    for name, x in given.items():
        held = check.host(x)
        default = getattr(signature.parameters.get(name), "default", None)
        number = isinstance(held, int | float) and not isinstance(held, bool)
        real = name == "learning_rate" or isinstance(default, float) or isinstance(held, float)
        if name == "learning_rate" and not (callable(x) or x is None):
            values[name] = check.real(name, x, above=0, also="or a schedule")
        else:
            values[name] = check.real(name, x) if number and real else by_content(x)
    static, traced = split(values)
    _try(by_content(factory), static, tuple(traced))
    return values


def split(values: Mapping[str, float | ByContent]) -> tuple[Static, dict[str, Any]]:
    """(what is compiled in, what is traced), each sorted by name."""
    pairs = sorted(values.items())
    static = tuple((name, x) for name, x in pairs if isinstance(x, ByContent))
    return static, {name: x for name, x in pairs if not isinstance(x, ByContent)}


def build(factory: Factory, static: Static, traced: Mapping[str, Any]) -> Any:
    """The transformation with these hyperparameters; traceable."""
    return factory(**{name: x.value for name, x in static}, **traced)


@functools.lru_cache(maxsize=256)  # cells of a sweep differ in their numbers alone
def _try(factory: ByContent, static: Static, traced: tuple[str, ...]) -> None:
    """Refuse a factory that cannot be called with these hyperparameters traced."""
    import optax

    told = getattr(factory.value, "__name__", check.shown(factory.value))
    built: list[Any] = []
    try:
        jax.eval_shape(
            lambda hyper: built.append(build(factory.value, static, hyper)),
            dict.fromkeys(traced, 0.5),
        )
    except jax.errors.ConcretizationTypeError:
        raise Refused(
            f"got {told} with {', '.join(traced)}, one of which it looks at while it builds the "
            "transformation; allowed: numbers that can be traced. Compile it in: "
            "functools.partial(factory, name=value) as optimizer"
        ) from None
    if not isinstance(built[0], optax.GradientTransformation):
        raise Refused(
            f"got {told}, which returned a {type(built[0]).__name__}; allowed: a factory of optax "
            "transformations"
        )
