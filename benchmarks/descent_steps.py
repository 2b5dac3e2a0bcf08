"""Descent steps against PyTorch and NumPy, and against the three matrix products a step needs.

The same run on both sides: full batch, heavy ball (momentum 0.9), float32, the decays as weight
decay. PyTorch is written as a user would write it: an `nn.Parameter` of features, `nn.Linear`,
`nn.CrossEntropyLoss`, `optim.SGD` with a parameter group a decay; once eager, once with the loss
and the optimiser's step under `torch.compile`. NumPy updates its arrays in place. Every round times
each contestant once, one after the other, so that a machine whose speed drifts drifts for all; the
table gives medians of the ratios within a round. The floor is W H, G Hᵀ and Wᵀ G in PyTorch.
Recording is timed inside the compiled loop: a run that records at every step against one of the
same length that records at its ends only; its share is that of a run with a record every 100 steps.

    python -m benchmarks.descent_steps        (needs pip install -e ".[bench]")
"""

import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch

import ufm
from benchmarks import paired
from ufm.descent import loop
from ufm.descent import run as descent
from ufm.runtime.threads import lapack_on_one_thread

SHAPES = ((10, 20, 100), (100, 128, 100), (1000, 512, 10), (10, 512, 5000))
LEARNING_RATE, MOMENTUM, DECAY = 0.1, 0.9, 5e-4
ROUNDS, SECONDS = 9, 0.5
STRIDE, RECORDS = 100, 32
PACKAGES = ("ufm", "jax", "jaxlib", "numpy", "optax", "torch")


def problem_and_start(shape: tuple[int, int, int]) -> tuple[ufm.Problem, ufm.Params]:
    """The model of a shape (K, d, n) and a float32 start."""
    problem = ufm.Problem(*shape, DECAY, DECAY, DECAY)
    return problem, ufm.init_params(jax.random.key(0), problem, dtype=jnp.float32)


def ours(problem: ufm.Problem, start: ufm.Params) -> tuple[Callable[[int], Any], float]:
    """Steps of the compiled loop, as `ufm.descend` runs them, and the seconds to compile it."""
    method, hyper = descent.prepare(problem, 1.0, "heavy_ball", LEARNING_RATE, MOMENTUM)
    state = jax.jit(loop.start, static_argnames="method")(problem, start, method, hyper)

    @jax.jit
    def run(problem, state, count):
        return jax.lax.fori_loop(0, count, lambda _, s: loop.step(problem, method, hyper, s), state)

    begun = time.perf_counter()
    run.lower(problem, state, 1).compile()
    compile_seconds = time.perf_counter() - begun
    return lambda count: jax.block_until_ready(run(problem, state, count)), compile_seconds


def recording(problem: ufm.Problem, start: ufm.Params, step_seconds: float) -> float:
    """Seconds that one record adds to a run of the compiled loop, median over rounds."""
    method, hyper = descent.prepare(problem, 1.0, "heavy_ball", LEARNING_RATE, MOMENTUM)
    state = jax.jit(loop.start, static_argnames="method")(problem, start, method, hyper)
    steps = max(4, min(RECORDS - 1, int(SECONDS / (10 * step_seconds))))

    @jax.jit
    def run(problem, state, every):
        limits = loop.Limits(jnp.int32(steps), every, -1.0, -1.0)
        chunks = (steps + every - 1) // every
        return loop.trajectory(problem, state, method, hyper, limits, RECORDS, chunks)

    def seconds(every: int) -> float:
        begun = time.perf_counter()
        with lapack_on_one_thread():  # as `ufm.descend` does
            jax.block_until_ready(run(problem, state, jnp.int32(every)))
        return time.perf_counter() - begun

    seconds(1)
    return statistics.median((seconds(1) - seconds(steps)) / (steps - 1) for _ in range(ROUNDS))


def pytorch(problem: ufm.Problem, start: ufm.Params, compiled: bool) -> Callable[[int], Any]:
    """The same steps in PyTorch; returns the parameters after `count` steps from the start."""
    labels = torch.tensor(problem.labels, dtype=torch.long)
    head, criterion = torch.nn.Linear(problem.d, problem.K), torch.nn.CrossEntropyLoss()
    features = torch.nn.Parameter(torch.empty(problem.N, problem.d))
    parameters = (head.weight, features, head.bias)
    groups = [{"params": [p], "weight_decay": DECAY} for p in parameters]
    optimizer = torch.optim.SGD(groups, lr=LEARNING_RATE, momentum=MOMENTUM)
    origin = [torch.tensor(np.asarray(x)) for x in (start.W, start.H.T, start.b)]

    def loss():
        return criterion(head(features), labels)

    update = optimizer.step
    if compiled:
        loss, update = torch.compile(loss), torch.compile(update)

    def run(count: int):
        with torch.no_grad():
            for parameter, x in zip(parameters, origin, strict=True):
                parameter.copy_(x)
                optimizer.state[parameter].get("momentum_buffer", torch.empty(0)).zero_()
        for _ in range(count):
            optimizer.zero_grad()
            loss().backward()
            update()
        return head.weight.detach().numpy(), features.detach().numpy().T

    return run


def numpy(problem: ufm.Problem, start: ufm.Params) -> Callable[[int], Any]:
    """The same steps in NumPy, arrays updated in place."""
    samples, labels = np.arange(problem.N), problem.labels

    def run(count: int):
        point = [np.array(x) for x in start]
        velocity = [np.zeros_like(x) for x in point]
        W, H, b = point
        for _ in range(count):
            G = W @ H
            G += b[:, None]
            G -= G.max(axis=0)
            np.exp(G, out=G)
            G /= G.sum(axis=0) * np.float32(problem.N)
            G[labels, samples] -= np.float32(1 / problem.N)
            for x, v, g in zip(point, velocity, (G @ H.T, W.T @ G, G.sum(axis=1)), strict=True):
                g += np.float32(DECAY) * x
                v *= np.float32(MOMENTUM)
                v += g
            for x, v in zip(point, velocity, strict=True):
                x -= np.float32(LEARNING_RATE) * v
        return W, H

    return run


def products(problem: ufm.Problem, start: ufm.Params) -> Callable[[int], Any]:
    """The floor: W H, G Hᵀ and Wᵀ G into arrays that are there already, nothing else."""
    W, H = torch.tensor(np.asarray(start.W)), torch.tensor(np.asarray(start.H))
    Z, dW, dH = torch.empty(problem.K, problem.N), torch.empty_like(W), torch.empty_like(H)

    def run(count: int):
        for _ in range(count):
            torch.mm(W, H, out=Z)
            torch.mm(Z, H.T, out=dW)
            torch.mm(W.T, Z, out=dH)

    return run


def measure(shape: tuple[int, int, int]) -> dict[str, Any]:
    """Times and paired ratios of one shape."""
    problem, start = problem_and_start(shape)
    fast, compile_seconds = ours(problem, start)
    contestants = {
        "ufm": fast,
        "eager": pytorch(problem, start, compiled=False),
        "compiled": pytorch(problem, start, compiled=True),
        "numpy": numpy(problem, start),
        "products": products(problem, start),
    }
    for peer in ("eager", "compiled", "numpy"):
        for name, x, y in zip("WH", fast(5).params, contestants[peer](5), strict=False):
            # Five float32 steps of two orders of summation.
            np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-5, err_msg=f"{shape} {peer} {name}")
    counts = {
        name: max(1, int(SECONDS / (paired.seconds(partial(run, 2)) / 2)))
        for name, run in contestants.items()
    }
    timed: dict[str, Callable[[], Any]] = {
        name: partial(run, counts[name]) for name, run in contestants.items()
    }
    rounds = [
        {name: wall / counts[name] for name, wall in once.items()}
        for once in paired.rounds(timed, ROUNDS)
    ]
    step = paired.median(rounds, "ufm")
    record = recording(problem, start, step)
    return {
        "shape": shape,
        "compile_seconds": compile_seconds,
        "microseconds": {name: 1e6 * paired.median(rounds, name) for name in contestants},
        "eager_over_ufm": paired.median(rounds, "eager", "ufm"),
        "compiled_over_ufm": paired.median(rounds, "compiled", "ufm"),
        "numpy_over_ufm": paired.median(rounds, "numpy", "ufm"),
        "ufm_over_products": paired.median(rounds, "ufm", "products"),
        "record_microseconds": 1e6 * record,
        "recording_share": record / (record + STRIDE * step),
        "rounds": rounds,
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown table of the results."""
    header = (
        "K, d, n",
        "ufm (µs/step)",
        "PyTorch eager (µs/step)",
        "eager / ufm",
        "torch.compile / ufm",
        "NumPy / ufm",
        "ufm / three products",
        f"recording, stride {STRIDE}",
        "compile (s)",
    )
    return paired.table(
        header,
        (
            (
                ", ".join(map(str, row["shape"])),
                f"{row['microseconds']['ufm']:.4g}",
                f"{row['microseconds']['eager']:.4g}",
                f"{row['eager_over_ufm']:.2f}",
                f"{row['compiled_over_ufm']:.2f}",
                f"{row['numpy_over_ufm']:.2f}",
                f"{row['ufm_over_products']:.2f}",
                f"{row['recording_share']:.1%}",
                f"{row['compile_seconds']:.2f}",
            )
            for row in rows
        ),
    )


def main() -> None:
    """Measure all shapes, write results/descent_steps.json, print the table."""
    environment = paired.environment(PACKAGES) | {"torch_threads": torch.get_num_threads()}
    results = []
    for shape in SHAPES:
        print(f"measuring {shape} …", flush=True)
        results.append(measure(shape))
    paired.write("descent_steps", {"environment": environment, "results": results})
    print(table(results))


if __name__ == "__main__":
    main()
