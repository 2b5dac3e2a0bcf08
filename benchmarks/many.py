"""A sweep of 256 problems (10, 20, 10) against a sequential PyTorch loop, a problem-step.

Heavy-ball steps in float32, the decays of all problems different. Ours is what `ufm.sweep`
compiles: the step mapped over the problems. The loop runs one problem after the other in PyTorch
eager, once on one thread and once on one a core; the quicker is compared with. Beside both, one
problem at a time in our own compiled loop, and `ufm.sweep` itself on 256 cells, which takes every
core: from call to table, with compiling, the start of processes, records and certificates; and at
its steady state, by the difference of a long sweep and a short one.

    python -m benchmarks.many        (needs pip install -e ".[bench]")
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import ufm
from benchmarks import paired
from benchmarks.descent_steps import LEARNING_RATE, MOMENTUM, ours, problem_and_start
from ufm.descent import loop
from ufm.runtime import loops

SHAPE, COUNTS, ROUNDS = (10, 20, 10), (16, 32, 64, 256), 5
SHORT, LONG = 20_000, 100_000  # steps of whole sweeps
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
        def step(state):
            one = jax.vmap(lambda p, s, h: loop.step(p, method, h, s))
            return one(problem, state, hyper)

        return loops.repeat(steps, step, state)

    return lambda steps: jax.block_until_ready(run(problem, state, hyper, steps))


def whole(steps: int) -> None:
    """A sweep of 256 cells, from call to table."""
    K, d, n = SHAPE
    lam = [float(x) for x in np.geomspace(1e-4, 1e-2, 16)]
    grid = ufm.Grid(
        K=K, d=d, n=n, lam_W=lam, lam_H=lam, lam_b=1e-3, optimizer="heavy_ball",
        learning_rate=LEARNING_RATE, momentum=MOMENTUM,
    )  # fmt: skip
    plan = ufm.Plan((grid,), steps, record_every=1000, gap_tol=None, precision="float32")
    assert set(ufm.sweep(plan)["status"]) == {"step_limit"}


def measure() -> dict[str, Any]:
    """Microseconds a problem-step and ratios to the PyTorch loop."""
    problem, start = problem_and_start(SHAPE)
    single, _ = ours(problem, start)
    runs: dict[str, tuple[Any, int, int]] = {"ufm, one by one": (single, 40_000, 1)}
    for threads in sorted({1, paired.cores()}) if paired.installed("torch") else ():
        from benchmarks import torch_steps  # imports PyTorch

        eager = torch_steps.steps(problem, start, "eager", LEARNING_RATE, MOMENTUM)
        runs[f"torch, {threads}"] = torch_steps.on_threads(eager, threads), 2000, 1
    runs |= {f"ufm, {n} mapped": (mapped(n), 40_000 // n, n) for n in COUNTS}
    for run, steps, _ in runs.values():
        run(steps // 10)
    rounds = []
    for _ in range(ROUNDS):
        once = {
            name: paired.seconds(partial(run, steps)) / (steps * count)
            for name, (run, steps, count) in runs.items()
        }
        short, long = (paired.seconds(partial(whole, steps)) for steps in (SHORT, LONG))
        once["ufm.sweep, call to table"] = long / (256 * LONG)
        once["ufm.sweep, steady state"] = (long - short) / (256 * (LONG - SHORT))
        rounds.append(once)
    K, d, n = SHAPE
    operations = 6 * K * d * K * n
    return {
        "shape": SHAPE,
        "microseconds": {name: 1e6 * paired.median(rounds, name) for name in rounds[0]},
        "torch_over": _torch_over(rounds),
        "gflops": {name: operations / paired.median(rounds, name) / 1e9 for name in rounds[0]},
        "rounds": rounds,
    }


def _torch_over(rounds: paired.Rounds) -> dict[str, float]:
    """Time of the PyTorch loop, on the threads where it is quickest, over each; empty without."""
    loops = [name for name in rounds[0] if name.startswith("torch")]
    if not loops:
        return {}
    best = min(loops, key=lambda name: paired.median(rounds, name))
    return {name: float(np.median([r[best] / r[name] for r in rounds])) for name in rounds[0]}


def table(result: dict[str, Any], gpu: paired.Column | None = None) -> str:
    """Markdown table of the result."""
    header = ("10, 20, 10", "µs a problem-step", "PyTorch loop / this", "GFlop/s in the products")
    return paired.table(
        header,
        (
            (
                name,
                f"{x:.3g}",
                f"{result['torch_over'][name]:.1f}" if result["torch_over"] else paired.ABSENT,
                f"{result['gflops'][name]:.3g}",
            )
            for name, x in result["microseconds"].items()
        ),
        gpu,
    )


def main() -> None:
    """Measure, write results/many.json, print the table."""
    environment = paired.environment(PACKAGES) | {
        "threads": "PyTorch: behind its name; ufm: one a core, mapped problems and their products 1"
    }
    result = measure()
    paired.write("many", {"environment": environment, "result": result})
    print(table(result))


if __name__ == "__main__":
    main()
