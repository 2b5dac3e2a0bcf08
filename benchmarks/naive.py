"""The contestants that a user of JAX would write in fifteen lines."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import ufm


def objective(params, labels, decay):
    """Mean cross-entropy with weight decay."""
    W, H, b = params
    logits = (W @ H).T + b
    data = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
    return data + decay / 2 * sum(jnp.sum(x**2) for x in params)


@partial(jax.jit, static_argnames=("steps", "learning_rate", "momentum"))
def descend(params, labels, decay, *, steps: int, learning_rate: float, momentum: float):
    """(params, losses) after so many full-batch steps of heavy ball."""
    optimizer = optax.sgd(learning_rate, momentum)

    loss = partial(objective, labels=labels, decay=decay)

    def step(carry, _):
        params, state = carry
        value, gradient = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(gradient, state)
        return (optax.apply_updates(params, updates), state), value

    begun = params, optimizer.init(params)
    (params, _), losses = jax.lax.scan(step, begun, length=steps)
    return params, losses


def run(problem: ufm.Problem, start: ufm.Params, steps: int, rate: float, momentum: float) -> Any:
    """Its parameters, with one decay for all."""
    labels, decay = np.asarray(problem.labels), float(problem.lam_W)
    done, _ = descend(
        tuple(start), labels, decay, steps=steps, learning_rate=rate, momentum=momentum
    )
    return jax.block_until_ready(done)


@partial(jax.jit, static_argnames="steps")
def lbfgs(params, labels, decay, *, steps: int):
    """(params, losses) after so many steps of optax's L-BFGS, with its line search."""
    optimizer = optax.lbfgs()

    loss = partial(objective, labels=labels, decay=decay)
    gradient_of = optax.value_and_grad_from_state(loss)

    def step(carry, _):
        params, state = carry
        value, gradient = gradient_of(params, state=state)
        updates, state = optimizer.update(
            gradient, state, params, value=value, grad=gradient, value_fn=loss
        )
        return (optax.apply_updates(params, updates), state), value

    (params, _), losses = jax.lax.scan(step, (params, optimizer.init(params)), length=steps)
    return params, losses
