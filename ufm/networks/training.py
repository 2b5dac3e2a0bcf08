"""Training with the papers' methods: compiled steps, records during training, checkpoints.

The mean cross-entropy (or another objective) plus (λ/2)‖θ‖² is minimised over all learned
parameters θ: weights, biases, BatchNorm's scales and shifts. This is the meaning of `weight_decay`
in the papers' PyTorch code, for Adam too. Schedules of Zhu et al. 2021 (arXiv 2105.02375, section
5.1): SGD with momentum 0.9 and rate 0.05, Adam with rate 1e-3, both divided by 10 after every fifth
of the epochs; L-BFGS of memory 10 with a line search for the strong Wolfe conditions.

Everything is computed in float32, products on GPUs included, unless `Recipe.precision` asks for
TF32 or bfloat16. On one device a resumed run gives the same bits as an uninterrupted one.
"""

import dataclasses
import os
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array

from ufm import check, losses
from ufm.check import Refused
from ufm.networks import checkpoints, data, models
from ufm.networks.data import Images

OPTIMIZERS = ("sgd", "adam", "lbfgs")
SAVE_AFTER = 60.0  # seconds without a checkpoint, between records
DROP = 0.1  # factor of the learning rate at each drop

Objective = Callable[[Any, Array, Array], Array]  # (model, pixels, labels) ↦ scalar
Record = dict[str, Any]  # numbers, or lists of numbers, by name


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Optimiser, schedule and precision of a training.

    optimizer: "sgd", "adam" or "lbfgs".
    epochs: passes over the images.
    batch_size: images in a step; the remainder of an epoch is left out. 0 takes all images, as
        L-BFGS requires.
    learning_rate: at the start; not used by "lbfgs", whose line search finds the step.
    decay: λ, of all learned parameters.
    momentum: of "sgd".
    precision: of products on accelerators, a name that `jax.default_matmul_precision` takes.
    drops: increasing shares of the epochs, after each of which the learning rate is divided by 10;
        not used by "lbfgs".

    Raises:
        Refused: values out of range.
    """

    optimizer: str = "sgd"
    epochs: int = 200
    batch_size: int = 128
    learning_rate: float = 0.05
    decay: float = 5e-4
    momentum: float = 0.9
    precision: str = "highest"
    drops: tuple[float, ...] = (0.2, 0.4, 0.6, 0.8)

    def __post_init__(self):
        if self.optimizer not in OPTIMIZERS:
            raise Refused(f"got optimizer={self.optimizer!r}; allowed: {', '.join(OPTIMIZERS)}")
        if self.optimizer == "lbfgs" and self.batch_size:
            raise Refused(f"got batch_size={self.batch_size} with 'lbfgs'; allowed: 0, all")
        for name, least in (("epochs", 1), ("batch_size", 0)):
            object.__setattr__(self, name, check.integer(name, getattr(self, name), least))
        rate, momentum = check.real("learning_rate", self.learning_rate, above=0), self.momentum
        object.__setattr__(self, "learning_rate", rate)
        object.__setattr__(self, "decay", check.real("decay", self.decay, least=0))
        object.__setattr__(self, "momentum", check.real("momentum", momentum, least=0, below=1))
        legs = np.diff((0.0, *self.drops, 1.0))
        if not np.all(legs > 0):
            raise Refused(f"got drops={self.drops}; allowed: increasing shares between 0 and 1")

    def transformation(self, steps: int) -> optax.GradientTransformationExtraArgs:
        """The optax transformation, for `steps` steps an epoch."""
        if self.optimizer == "lbfgs":
            return optax.lbfgs(memory_size=10)
        # A share such as 0.6 times the epochs may be a rounding below the intended integer.
        ends = {int(self.epochs * share + 1e-9) * steps: DROP for share in self.drops}
        rate = optax.piecewise_constant_schedule(self.learning_rate, ends)
        chosen = optax.sgd(rate, self.momentum) if self.optimizer == "sgd" else optax.adam(rate)
        return optax.with_extra_args_support(chosen)


class State(NamedTuple):
    """The state of a training: parameters, the rest of the model, the optimiser."""

    params: Any
    rest: Any
    optimizer: Any


class Trained(NamedTuple):
    """The model at the end, in evaluation mode, and the history, one array for each name."""

    model: Any
    history: dict[str, np.ndarray]


def cross_entropy(model, pixels: Array, labels: Array) -> Array:
    """Mean cross-entropy of the logits, in nats."""
    return jnp.mean(losses.cross_entropy(model(pixels).T, labels))


def train(
    model: Any,
    images: Images,
    method: Recipe,
    *,
    seed: int = 0,
    measure: Callable[[Any], Record],
    record_at: Sequence[int],
    objective: Objective = cross_entropy,
    folder: str | os.PathLike[str] | None = None,
    progress: Callable[[float], None] | None = None,
) -> Trained:
    """Train a copy of a model, starting from its parameters; the model itself is not changed.

    Args:
        model: a network of `ufm.networks.models`, or any flax nnx module that objective accepts.
        images: pixels (N, …) float32 and labels (N,) 0 … K−1, at least one of each class.
        method: optimiser and schedule.
        seed: of the order of the images.
        measure: called with the model in evaluation mode; returns numbers or lists of numbers.
        record_at: epochs at which to measure; 0 is the start, the last epoch is added.
        objective: the data term.
        folder: for a checkpoint, written at every record and every minute; the same call resumes
            from it.
        progress: called with the share of epochs done.

    Returns:
        A `Trained`; its history has one entry for every record, and `epoch` among its names.

    Raises:
        Refused: labels without a row of the classifier, a class without images, pixels that are NaN
            or infinite; a batch larger than the data; a folder that holds another training.
        FloatingPointError: a loss that is no longer finite.
    """
    classes, batch, steps = _batches(model, images, method)
    with jax.enable_x64(False), jax.default_matmul_precision(method.precision):
        graph, state = _start(model, method, steps)
        pixels, labels = jnp.asarray(images.pixels), jnp.asarray(classes)
        key = jax.random.key(seed)
    store = None if folder is None else _store(folder, method, seed, images, state)
    done, state, rows = (0, state, []) if store is None else store.resume(state)
    saved = time.monotonic()
    moments = sorted({epoch for epoch in record_at if epoch < method.epochs} | {method.epochs})
    for epoch in range(done, method.epochs + 1):
        due = epoch in moments and (not rows or rows[-1]["epoch"] < epoch)
        if due:
            rows.append({"epoch": epoch} | measure(_evaluated(graph, state)))
        if store is not None and (due or time.monotonic() - saved > SAVE_AFTER):
            store.save(epoch, state, rows)
            saved = time.monotonic()
        if epoch < method.epochs:
            with jax.enable_x64(False), jax.default_matmul_precision(method.precision):
                order = jax.random.fold_in(key, epoch)
                state, loss = _epoch(graph, method, batch, objective, state, pixels, labels, order)
            _check_finite(float(loss), epoch, method)
        if progress is not None:
            progress(epoch / method.epochs)
    if store is not None:
        store.close()
    history = {name: np.array([row[name] for row in rows]) for name in rows[0]}
    return Trained(_evaluated(graph, state), history)


class Cost(NamedTuple):
    """Cost of one training step.

    seconds: time of the fastest epoch divided by its steps.
    bytes: device memory of the state (parameters, statistics, optimiser) and of the temporaries
        that the compiler allocates, without the images.
    """

    seconds: float
    bytes: int


def cost(model: Any, images: Images, method: Recipe, epochs: int = 5) -> Cost:
    """Measure a step of a training by running some epochs of it; the model is not changed.

    Raises:
        Refused: labels, pixels and batches as in `train`.
    """
    classes, batch, steps = _batches(model, images, method)
    with jax.enable_x64(False), jax.default_matmul_precision(method.precision):
        graph, state = _start(model, method, steps)
        inputs = jnp.asarray(images.pixels), jnp.asarray(classes)
        fixed = graph, method, steps, cross_entropy
        chosen = None if steps == 1 else np.arange(batch, dtype=np.int32)
        compiled = _step.lower(*fixed, method.decay, state, *inputs, chosen).compile()
        memory = compiled.memory_analysis()
        assert memory is not None, "XLA reports the memory of programs on CPU, GPU and TPU"
        allocated = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
        seconds = []
        for _ in range(epochs):
            begun = time.perf_counter()
            for _ in range(steps):
                state, _ = compiled(method.decay, state, *inputs, chosen)
            jax.block_until_ready(state)
            seconds.append((time.perf_counter() - begun) / steps)
    return Cost(min(seconds), allocated + memory.temp_size_in_bytes)


def _store(folder, method: Recipe, seed: int, images: Images, state: State) -> checkpoints.Store:
    """The store of checkpoints, identified by everything that determines the result."""
    return checkpoints.Store(
        folder,
        method=dataclasses.asdict(method),
        seed=seed,
        images=checkpoints.digest(images),
        start=checkpoints.digest(state),
    )


def _batches(model: Any, images: Images, method: Recipe) -> tuple[np.ndarray, int, int]:
    """(labels (N,), images in a step, steps in an epoch).

    Raises:
        Refused: labels without a row of the classifier, if the model has a known one; pixels that
            are not finite; a batch larger than the data.
    """
    known = isinstance(model, models.ResNet | models.MLP)
    classes = data.rows(images, len(models.classifier(model)[1]) if known else None)
    N = len(classes)
    batch = method.batch_size or N
    if batch > N:
        raise Refused(f"got batch_size={batch} for {N} images; allowed: 0 (all) to {N}")
    return classes, batch, N // batch


def _start(model: Any, method: Recipe, steps: int) -> tuple[Any, State]:
    """(structure, state at the start) of a model in training mode; steps an epoch."""
    model = nnx.clone(model)
    model.train()
    graph, params, rest = _split(model)
    state = State(params, rest, method.transformation(steps).init(params))
    # Copies, since every step reuses the memory of the state that it is given.
    return graph, jax.tree.map(jnp.copy, state)


def _split(model) -> tuple[Any, Any, Any]:
    """(structure, learned parameters, everything else) of a model."""
    graph, params, *rest = nnx.split(model, nnx.Param, ...)
    return graph, params, rest[0]


def _evaluated(graph, state: State):
    model = nnx.merge(graph, state.params, state.rest, copy=True)
    model.eval()
    return model


def _check_finite(loss: float, epoch: int, method: Recipe) -> None:
    if not np.isfinite(loss):
        raise FloatingPointError(
            f"the loss is {loss} in epoch {epoch + 1} of {method.optimizer!r}; lower the learning "
            f"rate (got {method.learning_rate}) or the decay (got {method.decay})"
        )


def regularised(graph, objective: Objective, decay, params, rest, pixels, labels):
    """(objective + (decay/2)‖params‖², the rest of the model after the pass)."""
    model = nnx.merge(graph, params, rest, copy=True)
    value = objective(model, pixels, labels)
    squares = sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(params))
    return value + decay / 2 * squares, _split(model)[2]


def _epoch(graph, method, batch, objective, state, pixels, labels, key):
    """One pass in random order; the state after it and the loss of the last step.

    Steps are called one by one, since inside a compiled loop XLA's convolutions are about ten times
    slower on CPUs.
    """
    N = len(labels)
    steps = N // batch
    step = partial(_step, graph, method, steps, objective)
    if steps == 1:
        return step(method.decay, state, pixels, labels, None)
    order = jax.random.permutation(key, N)[: steps * batch].reshape(steps, batch)
    for chosen in np.asarray(order):
        state, loss = step(method.decay, state, pixels, labels, chosen)
    return state, loss


@partial(jax.jit, static_argnums=(0, 1, 2, 3), donate_argnums=5)
def _step(graph, method, steps, objective, decay, state: State, pixels, labels, chosen):
    """One step on the images of these indices, None for all; the state after it and its loss."""
    if chosen is not None:
        pixels, labels = pixels[chosen], labels[chosen]
    transformation, optimizer = method.transformation(steps), method.optimizer
    loss = partial(
        regularised, graph, objective, decay, rest=state.rest, pixels=pixels, labels=labels
    )
    if optimizer == "lbfgs":

        def value_fn(params):
            return loss(params)[0]

        # The state has value and gradient of this point from the line search that chose it.
        stored = optax.value_and_grad_from_state(value_fn)
        value, gradient = stored(state.params, state=state.optimizer)
        extra = {"value": value, "grad": gradient, "value_fn": value_fn}
        rest = loss(state.params)[1]
    else:
        (value, rest), gradient = jax.value_and_grad(loss, has_aux=True)(state.params)
        extra = {}
    updates, memory = transformation.update(gradient, state.optimizer, state.params, **extra)
    return State(optax.apply_updates(state.params, updates), rest, memory), value
