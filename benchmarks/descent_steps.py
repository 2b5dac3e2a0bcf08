"""Descent steps against PyTorch, NumPy and naive JAX, and against the matrix products of a step.

The same run on all sides: full batch, heavy ball (momentum 0.9), float32, the decays as weight
decay: PyTorch as a user would write it (`benchmarks.torch_steps`), eager, under `torch.compile`,
and with a compiled loss and `SGD(fused=True)`; fifteen lines of JAX (`benchmarks.naive`), whose
steps are one `scan`; NumPy, which updates its arrays in place. The floor is W H, G Hᵀ and Wᵀ G in
PyTorch. XLA takes the cores of the process. PyTorch's and NumPy's threads wait by spinning, and
make them look up to 300 times slower on a busy machine: both are timed with one thread and with
one a core, and tables show the quicker. Everybody is timed once more in a process of one core.

Every round times each contestant once, one after the other, so that a machine whose speed drifts
drifts for all; the tables give medians of the ratios within a round. Recording is timed inside the
compiled loop: a run that records at every step against one of the same length that records at its
ends only; its share is that of a run with a record every 100 steps. Steps of learning_rate="auto",
which are tested before they are taken, are timed against constant ones, both from the start on.

    python -m benchmarks.descent_steps        (peers need pip install -e ".[bench]")
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from threadpoolctl import threadpool_limits

import ufm
from benchmarks import naive, paired
from ufm.descent import loop
from ufm.descent import run as descent
from ufm.runtime import loops
from ufm.runtime.threads import lapack_on_one_thread

SHAPES = ((10, 20, 100), (100, 128, 100), (1000, 512, 10), (10, 512, 5000))
LEARNING_RATE, MOMENTUM, DECAY = 0.1, 0.9, 5e-4
ROUNDS, SECONDS = 7, 0.3
STRIDE, RECORDS = 100, 32
PACKAGES = ("ufm", "jax", "jaxlib", "numpy", "optax", "torch")
TESTED = ("gd", "heavy_ball", "nesterov")  # methods whose steps can be "auto"
# Names of what is timed, and its heads in the tables.
PEERS = {
    "eager": "PyTorch eager", "compiled": "torch.compile", "fused": "SGD(fused=True)",
    "naive": "naive JAX", "numpy": "NumPy",
}  # fmt: skip


class Contestant(NamedTuple):
    """Who takes steps, on how many threads, and the function that takes so many."""

    name: str
    threads: int
    run: Callable[[int], Any]

    @property
    def key(self) -> str:
        """Its name in rounds."""
        return f"{self.name}, {self.threads}"


def problem_and_start(shape: tuple[int, int, int]) -> tuple[ufm.Problem, ufm.Params]:
    """The model of a shape (K, d, n) and a float32 start."""
    problem = ufm.Problem(*shape, DECAY, DECAY, DECAY)
    return problem, ufm.init_params(jax.random.key(0), problem, dtype=jnp.float32)


def ours(
    problem: ufm.Problem,
    start: ufm.Params,
    name: str = "heavy_ball",
    rate: float | str = LEARNING_RATE,
) -> tuple[Callable[[int], Any], float]:
    """Steps of the compiled loop, as `ufm.descend` runs them, and the seconds to compile it."""
    momentum = None if name == "gd" else MOMENTUM
    method, hyper = descent.prepare(problem, 1.0, name, rate, momentum)
    state = jax.jit(loop.start, static_argnames="method")(problem, start, method, hyper)

    @jax.jit
    def run(problem, state, count):
        return loops.repeat(count, partial(loop.step, problem, method, hyper), state)

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


def limited(run: Callable[[int], Any], threads: int) -> Callable[[int], Any]:
    """The run with so many threads of BLAS."""

    def with_limit(count: int):
        with threadpool_limits(threads, user_api="blas"):
            return run(count)

    return with_limit


def contestants(
    problem: ufm.Problem, start: ufm.Params, fast: Callable[[int], Any]
) -> list[Contestant]:
    """Everybody who is installed, on one thread and on one a core where that can be chosen."""
    cores = paired.cores()
    found = [Contestant("ufm", cores, fast)]

    def plain(count: int):
        return naive.run(problem, start, count, LEARNING_RATE, MOMENTUM)

    found.append(Contestant("naive", cores, plain))
    for threads in sorted({1, cores}):
        found.append(Contestant("numpy", threads, limited(numpy(problem, start), threads)))
        if not paired.installed("torch"):
            continue
        from benchmarks import torch_steps  # imports PyTorch

        runs = {
            kind: torch_steps.steps(problem, start, kind, LEARNING_RATE, MOMENTUM)
            for kind in torch_steps.KINDS
        } | {"products": torch_steps.products(problem, start)}
        for name, run in runs.items():
            found.append(Contestant(name, threads, torch_steps.on_threads(run, threads)))
    return found


def agree(field: Sequence[Contestant], shape: tuple[int, int, int]) -> None:
    """Refuse contestants that take other steps than ours."""
    ours = next(x for x in field if x.name == "ufm").run(5).params
    for peer in field:
        if peer.name in ("ufm", "products"):
            continue
        for name, x, y in zip("WH", ours, peer.run(5), strict=False):
            # Five float32 steps of two orders of summation.
            np.testing.assert_allclose(
                x, y, rtol=1e-3, atol=1e-5, err_msg=f"{shape} {peer.key} {name}"
            )


def timed(runs: dict[str, Callable[[int], Any]], length: dict[str, int]) -> paired.Rounds:
    """Rounds of seconds a step; length: steps of one timing, by name."""
    whole: dict[str, Callable[[], Any]] = {
        name: partial(run, length[name]) for name, run in runs.items()
    }
    return [
        {name: wall / length[name] for name, wall in once.items()}
        for once in paired.rounds(whole, ROUNDS)
    ]


def lengths(runs: dict[str, Callable[[int], Any]]) -> dict[str, int]:
    """Steps that take `SECONDS`, of each; afterwards a run of that length is compiled."""
    found = {}
    for name, run in runs.items():
        count = 2
        for _ in range(2):  # of two steps the start of the call is most
            run(count)
            count = max(1, round(count * SECONDS / paired.seconds(partial(run, count))))
        found[name] = count
        run(count)
    return found


def measure(shape: tuple[int, int, int]) -> dict[str, Any]:
    """Times and paired ratios of one shape."""
    problem, start = problem_and_start(shape)
    fast, compile_seconds = ours(problem, start)
    field = contestants(problem, start, fast)
    agree(field, shape)
    runs = {x.key: x.run for x in field}
    rounds = timed(runs, lengths(runs))
    own = field[0].key
    step = paired.median(rounds, own)
    record = recording(problem, start, step)
    return {
        "shape": shape,
        "cores": paired.cores(),
        "compile_seconds": compile_seconds,
        "contestants": [
            {
                "name": x.name, "threads": x.threads,
                "microseconds": 1e6 * paired.median(rounds, x.key),
                "over_ufm": paired.median(rounds, x.key, own),
            }
            for x in field
        ],
        "record_microseconds": 1e6 * record,
        "recording_share": record / (record + STRIDE * step),
        "rounds": rounds,
    }  # fmt: skip


def tested(shape: tuple[int, int, int]) -> dict[str, Any]:
    """Steps of "auto" over constant ones at a shape, for every method that has both."""
    problem, start = problem_and_start(shape)
    runs = {
        f"{name}, {rate}": ours(problem, start, name, rate)[0]
        for name in TESTED
        for rate in (LEARNING_RATE, "auto")
    }
    found = lengths(runs)
    # The same steps from the start, as many for both: trials are more frequent at first.
    found = {key: found[f"{key.partition(',')[0]}, auto"] for key in runs}
    rounds = timed(runs, found)
    return {
        "shape": shape,
        "steps": found,
        "microseconds": {key: 1e6 * paired.median(rounds, key) for key in runs},
        "auto_over_constant": {
            name: paired.median(rounds, f"{name}, auto", f"{name}, {LEARNING_RATE}")
            for name in TESTED
        },
    }


def quickest(row: dict[str, Any], name: str) -> dict[str, Any] | None:
    """The contestant of that name on the number of threads where it is quickest, if it is there."""
    found = [x for x in row["contestants"] if x["name"] == name]
    return min(found, key=lambda x: x["over_ufm"], default=None)


def table(rows: list[dict[str, Any]], gpu: paired.Column | None = None, short: bool = False) -> str:
    """Markdown table of the results; behind a ratio the threads with which it was reached.

    short: without what is of interest to those who optimise.
    """
    header = (
        "K, d, n", "cores", "ufm (µs/step)", *(f"{title} / ufm" for title in PEERS.values()),
        "ufm / three products", f"recording, stride {STRIDE}", "compile (s)",
    )  # fmt: skip

    def ratio(row: dict[str, Any], name: str) -> str:
        found = quickest(row, name)
        return f"{found['over_ufm']:.2f} ({found['threads']})" if found else paired.ABSENT

    lines = []
    for row in rows:
        own, floor = quickest(row, "ufm"), quickest(row, "products")
        assert own is not None
        lines.append((
            ", ".join(map(str, row["shape"])), str(row["cores"]), f"{own['microseconds']:.4g}",
            *(ratio(row, name) for name in PEERS),
            f"{1 / floor['over_ufm']:.2f} ({floor['threads']})" if floor else paired.ABSENT,
            f"{row['recording_share']:.1%}", f"{row['compile_seconds']:.2f}",
        ))  # fmt: skip
    if short:
        header, *lines = ((line[0], *line[2:-1]) for line in (header, *lines))
        return paired.table(header, lines)
    return paired.table(header, lines, gpu)


def table_of_tested(rows: list[dict[str, Any]]) -> str:
    """Markdown table of steps of "auto" over constant ones."""
    header = ("K, d, n", *(f"{name}: auto (µs/step), over a constant step" for name in TESTED))
    return paired.table(
        header,
        (
            (
                ", ".join(map(str, row["shape"])),
                *(
                    f"{row['microseconds'][f'{name}, auto']:.4g}, "
                    f"{row['auto_over_constant'][name]:.2f}"
                    for name in TESTED
                ),
            )
            for row in rows
        ),
    )


def on_one_core(shapes: Sequence[tuple[int, int, int]]) -> list[dict[str, Any]]:
    """`measure` in a process of one core, where everybody has one thread."""
    words = [sys.executable, "-m", "benchmarks.descent_steps", "--one-core", json.dumps(shapes)]
    told = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True, cwd=paired.ROOT)
    return json.loads(told.stdout.splitlines()[-1])


def main() -> None:
    """Measure all shapes, write results/descent_steps.json, print the tables."""
    environment = paired.environment(PACKAGES) | {"threads": "with each contestant"}
    record: dict[str, Any] = {"environment": environment, "results": [], "tested": []}
    for shape in SHAPES:
        print(f"measuring {shape} …", flush=True)
        record["results"].append(measure(shape))
        record["tested"].append(tested(shape))
    record["one_core"] = on_one_core(SHAPES)
    paired.write("descent_steps", record)
    print(table(record["results"] + record["one_core"]))
    print(table_of_tested(record["tested"]))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--one-core", type=json.loads)
    given = parser.parse_args()
    if given.one_core:
        # Before XLA starts its threads.
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        print(json.dumps([measure(tuple(shape)) for shape in given.one_core]))
    else:
        main()
