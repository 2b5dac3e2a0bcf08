"""A sweep of 256 problems (10, 20, 10) against a sequential PyTorch loop, a problem-step.

Heavy-ball steps in float32, the decays of all problems different. Ours is what `ufm.sweep`
compiles: the step mapped over the problems. The loop runs one problem after the other in PyTorch
eager. Beside both, one problem at a time in our own compiled loop.

    python -m benchmarks.many        (needs pip install -e ".[bench]")
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import ufm
from benchmarks import paired
from benchmarks.descent_steps import LEARNING_RATE, MOMENTUM, ours, problem_and_start, pytorch
from ufm import loop

SHAPE, COUNTS, ROUNDS = (10, 20, 10), (16, 32, 64, 256), 7
PACKAGES = ("ufm", "jax", "jaxlib", "numpy", "torch")


def mapped(count: int):
    """A function that takes so many steps of `count` problems side by side."""
    lam = jnp.geomspace(1e-4, 1e-2, count, dtype=jnp.float32)
    problem = ufm.Problem(*SHAPE, lam, lam, lam)
    one = ufm.Problem(*SHAPE, 1e-3, 1e-3, 1e-3)
    keys = jax.random.split(jax.random.key(0), count)
    params = jax.vmap(lambda key: ufm.init_params(key, one, dtype=jnp.float32))(keys)
    method = loop.Method("heavy_ball", None, None)
    hyper = (jnp.full(count, LEARNING_RATE, jnp.float32), jnp.full(count, MOMENTUM, jnp.float32))
    state = jax.jit(jax.vmap(lambda p, x, h: loop.start(p, x, method, h)))(problem, params, hyper)

    @jax.jit
    def run(problem, state, hyper, steps):
        def step(_, state):
            one = jax.vmap(lambda p, s, h: loop.step(p, method, h, s))
            return one(problem, state, hyper)

        return jax.lax.fori_loop(0, steps, step, state)

    return lambda steps: jax.block_until_ready(run(problem, state, hyper, steps))


def measure() -> dict[str, Any]:
    """Microseconds a problem-step and ratios to the PyTorch loop."""
    problem, start = problem_and_start(SHAPE)
    single, _ = ours(problem, start)
    runs: dict[str, tuple[Any, int, int]] = {
        "torch": (pytorch(problem, start, compiled=False), 2000, 1),
        "ufm, one by one": (single, 40_000, 1),
    }
    runs |= {f"ufm, {n} mapped": (mapped(n), 40_000 // n, n) for n in COUNTS}
    for run, steps, _ in runs.values():
        run(steps // 10)
    rounds = [
        {
            name: paired.seconds(partial(run, steps)) / (steps * count)
            for name, (run, steps, count) in runs.items()
        }
        for _ in range(ROUNDS)
    ]
    K, d, n = SHAPE
    operations = 6 * K * d * K * n
    return {
        "shape": SHAPE,
        "microseconds": {name: 1e6 * paired.median(rounds, name) for name in runs},
        "torch_over": {
            name: float(np.median([r["torch"] / r[name] for r in rounds])) for name in runs
        },
        "gflops": {name: operations / paired.median(rounds, name) / 1e9 for name in runs},
        "rounds": rounds,
    }


def table(result: dict[str, Any]) -> str:
    """Markdown table of the result."""
    header = ("10, 20, 10", "µs a problem-step", "PyTorch loop / this", "GFlop/s in the products")
    return paired.table(
        header,
        (
            (name, f"{x:.3g}", f"{result['torch_over'][name]:.1f}", f"{result['gflops'][name]:.3g}")
            for name, x in result["microseconds"].items()
        ),
    )


def main() -> None:
    """Measure, write results/many.json, print the table."""
    environment, result = paired.environment(PACKAGES), measure()
    paired.write("many", {"environment": environment, "result": result})
    print(table(result))


if __name__ == "__main__":
    main()
