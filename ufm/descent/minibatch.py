"""Minibatches of samples without replacement, and the unbiased gradient of one."""

import jax
import jax.numpy as jnp
from jaxtyping import Array

from ufm.model.objective import add_decay, decays, pullback, residual
from ufm.model.problem import Params, Problem


def draw(problem: Problem, key: Array, step, order: Array, batch_size: int) -> tuple[Array, Array]:
    """(columns of the next minibatch, order of the epoch): without replacement within an epoch.

    Every epoch draws a new permutation of the N samples and uses its first ⌊N/B⌋·B entries in
    batches of B. The samples left out are random as well, so each batch is a uniform sample without
    replacement. Traceable.

    Args:
        problem: the model, with N samples.
        key: PRNG key of the run.
        step: steps taken before.
        order: the permutation (N,) of the present epoch.
        batch_size: B ≤ N.
    """
    per_epoch = problem.N // batch_size
    epoch, position = step // per_epoch, step % per_epoch
    order = jax.lax.cond(
        position == 0,
        lambda: epoch_order(problem, key, epoch),
        lambda: order,
    )
    return jax.lax.dynamic_slice(order, (position * batch_size,), (batch_size,)), order


def epoch_order(problem: Problem, key: Array, epoch) -> Array:
    """Permutation (N,) of the samples in an epoch, from the run's key. Traceable."""
    samples = jnp.arange(problem.N, dtype=jnp.int32)
    return jax.random.permutation(jax.random.fold_in(key, epoch), samples)


def gradient(problem: Problem, params: Params, columns: Array) -> Params:
    """Minibatch estimate of ∇f over the given columns of H, unbiased, decay of H included.

    With G_B = [c_i r_i]/B on the B columns:  ∇_W = G_B H_Bᵀ + λ_W W,  ∇_b = G_B 1 + λ_b b, and
    ∇_H = Wᵀ G_B + (N/B) λ_H H_B Ω_B on the batch, 0 elsewhere. Each sample is drawn with
    probability B/N, so the expectation is ∇f. Traceable.

    Args:
        problem, params: any point.
        columns: (B,), the samples of the batch.
    """
    W, H, b = params
    H_B = H[:, columns]
    B = columns.shape[0]
    part = Params(W, H_B, b)
    labels = jnp.asarray(problem.labels)[columns]
    G = residual(problem, part, labels) / B
    if problem.weights is not None:
        G *= jnp.asarray(problem.weights, G.dtype)[labels]
    dW, dH_B, db = add_decay(problem, part, pullback(problem, part, G), labels)
    dH_B += (problem.N / B - 1) * decays(problem, H.dtype, labels).H * H_B
    return Params(dW, jnp.zeros_like(H).at[:, columns].set(dH_B, unique_indices=True), db)
