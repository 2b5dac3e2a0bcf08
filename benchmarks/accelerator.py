"""What an accelerator does with the same work: the GPU columns of every table, in eight minutes.

Every section is a process of its own, which gets what is left of the eight minutes but half a
minute for each section after it, and is ended then; what was not reached is "not measured". The
rates of the device come first: products of square matrices in float32 at "highest" (what `ufm` asks
for), at JAX's default (TF32 on NVIDIA), in bfloat16 and in float64, and the bandwidth of a copy. A
step's share of the product rate is that of its 6KdN operations in float32 at "highest", its share
of the bandwidth that of the 16dN bytes that its update must move. Where N grows it grows up to what
fits.

    python -m benchmarks --accelerator            writes results/accelerator.json, fills the tables
    python -m benchmarks --accelerator --small    tiny sizes, on any device; keeps nothing
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from benchmarks import paired
from benchmarks.first_result import TASKS

BUDGET = 480.0  # seconds of the whole command
RESERVED = 30.0  # seconds that a section leaves to each one after it
PACKAGES = ("ufm", "jax", "jaxlib", "numpy", "optax")
FITS = 0.8  # of the device's memory may be taken
BACKEND = "import jax, json; print(json.dumps([jax.default_backend()]))"
COPIES = 6  # of H that a step holds at most: state, gradient and the state before


class Sizes(NamedTuple):
    """How large the sections are: the form that is kept, or one to try the command with.

    square: of the products.  vector: numbers that are copied.  shapes: of `descent_steps`.
    larger: (K, d, first n) of the rows that grow by `FACTOR` up to what fits or to `most` columns.
    counts: problems side by side.  solves: K of `certified`.  pairs: cases of `eigenpairs`.
    axes: points of each axis of `growth`.  tasks: of `first_result`.
    """

    square: int
    vector: int
    shapes: tuple[tuple[int, int, int], ...]
    larger: tuple[tuple[int, int, int], ...]
    most: int
    counts: tuple[int, ...]
    solves: tuple[int, ...]
    pairs: int
    axes: int
    tasks: tuple[str, ...]


FACTOR = 8
FULL = Sizes(
    8192, 2**28, ((10, 20, 100), (100, 128, 100), (1000, 512, 10), (10, 512, 5000)),
    ((10, 512, 50_000), (1000, 512, 100)), 2**31, (256, 4096), (10, 100, 1000), 2, 6,
    ("import", "descend", "solve", "first", "probe"),
)  # fmt: skip
SMALL = Sizes(256, 2**16, ((4, 6, 5),), ((4, 6, 10),), 400, (4,), (4,), 0, 3, ("import",))


def rates(sizes: Sizes) -> dict[str, Any]:
    """Operations and bytes a second of the device, and its name and memory."""
    import jax
    import jax.numpy as jnp

    jax.config.update("jax_enable_x64", True)
    device, m = jax.devices()[0], sizes.square
    formats: dict[str, tuple[Any, Any]] = {
        "float32, highest": (jnp.float32, "highest"), "float32, default": (jnp.float32, "default"),
        "bfloat16": (jnp.bfloat16, "default"), "float64": (jnp.float64, "highest"),
    }  # fmt: skip
    found = {}
    for name, (dtype, precision) in formats.items():
        x = jax.random.normal(jax.random.key(0), (m, m), dtype)
        times = jax.jit(partial(jnp.matmul, precision=precision))
        found[name] = 2 * m**3 / _quickest(partial(times, x, x))
    x = jnp.ones(sizes.vector, jnp.float32)
    copied = 8 * sizes.vector / _quickest(partial(jax.jit(lambda x: x + 1), x))
    memory = (device.memory_stats() or {}).get("bytes_limit")
    return {
        "platform": device.platform, "device": device.device_kind, "memory_bytes": memory,
        "operations_a_second": found, "copied_bytes_a_second": copied,
    }  # fmt: skip


def _quickest(run: Callable[[], Any], tries: int = 5) -> float:
    """Seconds of the quickest call after the first, of ten calls in a row."""
    import jax

    def ten() -> None:
        jax.block_until_ready([run() for _ in range(10)])

    ten()
    return min(paired.seconds(ten) for _ in range(tries)) / 10


def _step(shape: tuple[int, int, int], beside: bool) -> dict[str, Any]:
    """Microseconds of a step, beside naive JAX's or not, and the seconds to compile it."""
    from benchmarks import descent_steps as steps
    from benchmarks import naive

    problem, start = steps.problem_and_start(shape)
    fast, compile_seconds = steps.ours(problem, start)

    def plain(count: int) -> Any:
        return naive.run(problem, start, count, steps.LEARNING_RATE, steps.MOMENTUM)

    runs = {"ufm": fast} | ({"naive": plain} if beside else {})
    rounds = steps.timed(runs, steps.lengths(runs))
    K, d, n = shape
    return {
        "shape": shape, "compile_seconds": compile_seconds,
        "microseconds": {name: 1e6 * paired.median(rounds, name) for name in runs},
        "operations": 6 * K * d * K * n, "update_bytes": 16 * d * K * n,
    }  # fmt: skip


def descent_steps(sizes: Sizes) -> list[dict[str, Any]]:
    """Steps at the shapes of the benchmark on CPUs."""
    return [_step(shape, beside=True) for shape in sizes.shapes]


def larger(sizes: Sizes) -> list[dict[str, Any]]:
    """Steps at shapes whose n grows up to what fits, each printed as it is there.

    Without naive JAX's, which makes all logits at once.
    """
    import jax

    limit = (jax.devices()[0].memory_stats() or {}).get("bytes_limit")
    rows = []
    for K, d, n in sizes.larger:
        while K * n <= sizes.most and (not limit or 4 * COPIES * d * K * n <= FITS * limit):
            rows.append(_step((K, d, n), beside=False))
            print(json.dumps(rows), flush=True)
            n *= FACTOR
    return rows


def many(sizes: Sizes) -> dict[str, float]:
    """Microseconds a problem-step of so many problems side by side."""
    from benchmarks import many as benchmark

    found = {}
    for count in sizes.counts:
        run, steps = benchmark.mapped(count), 1000
        run(steps)
        found[str(count)] = 1e6 * paired.seconds(partial(run, steps)) / (steps * count)
    return found


def certified(sizes: Sizes) -> list[dict[str, Any]]:
    """Seconds of `ufm.solve` to a certified minimum, each printed as it is there."""
    import jax
    import numpy as np

    from benchmarks import certified as benchmark

    jax.config.update("jax_enable_x64", True)
    rows = []
    for K in sizes.solves:
        problem, start = benchmark.problem_and_start(K)
        benchmark.ours(problem, start, np.inf)
        seconds, gap = benchmark.ours(problem, start, np.inf)
        rows.append({"K": K, "seconds": seconds, "gap": gap})
        print(json.dumps(rows), flush=True)
    return rows


def eigenpairs(sizes: Sizes) -> list[dict[str, Any]]:
    """Seconds of `hessian.extreme` at the points of the benchmark on CPUs."""
    import jax

    jax.config.update("jax_enable_x64", True)
    from benchmarks import eigenpairs as benchmark
    from ufm import hessian

    rows = []
    for problem, groups, _, _ in benchmark.CASES[: sizes.pairs]:
        points = {
            "saddle": benchmark.tied_saddle(problem, groups),
            "on the way": benchmark.on_the_way(problem),
        }
        for name, point in points.items():
            run = partial(hessian.extreme, problem, point, benchmark.PAIRS)
            run()
            shape = [problem.K, problem.d, problem.n]
            begun = time.perf_counter()
            jax.block_until_ready(run())
            seconds = time.perf_counter() - begun
            rows.append({"K, d, n": shape, "point": name, "seconds": seconds})
            print(json.dumps(rows), flush=True)
    return rows


def growth(sizes: Sizes) -> list[dict[str, Any]]:
    """Exponents of the time of a step, each axis printed as it is there."""
    from benchmarks import growth as benchmark

    rows = []
    for axis, shapes in benchmark.STEP.items():
        rows.append(benchmark.measure(axis, shapes[: sizes.axes], benchmark.a_step))
        print(json.dumps(rows), flush=True)
    return rows


def memory(sizes: Sizes) -> list[dict[str, Any]]:
    """Peak of the device's memory in a whole run, beside naive JAX's."""
    from benchmarks import memory as benchmark

    rows = []
    for shape in sizes.shapes:
        rows.append(benchmark.measure(shape))
        print(json.dumps(rows), flush=True)
    return rows


def first_result(sizes: Sizes) -> dict[str, Any]:
    """Fresh processes, cold and warm, once."""
    from benchmarks import first_result as benchmark

    return benchmark.measure(sizes.tasks, 1)


# In this order: what says most about the device first, what takes longest last.
SECTIONS: dict[str, Callable[[Sizes], Any]] = {
    "rates": rates, "descent_steps": descent_steps, "many": many, "eigenpairs": eigenpairs,
    "certified": certified, "first_result": first_result, "growth": growth, "memory": memory,
    "larger": larger,
}  # fmt: skip


def measure(small: bool, budget: float, keep: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """All sections, as far as the time goes; of one that was ended what it had printed.

    `keep` is called with what there is after every section: a device may be taken away.
    """
    begun, record = time.monotonic(), dict[str, Any]()
    for name in SECTIONS:
        words = [sys.executable, "-m", "benchmarks.accelerator", "--section", name]
        left = budget - (time.monotonic() - begun)
        waiting = len(SECTIONS) - len(record) - 1
        print(f"measuring {name}, {left:.0f} s left …", flush=True)
        record[name] = _told([*words, *["--small"] * small], left - RESERVED * waiting)
        keep(record)
    return record


def _told(words: list[str], seconds: float) -> Any:
    """The last line that a process printed within its time, or None."""
    if seconds <= 0:
        return None
    # A session of its own, so that what it has started ends with it.
    process = subprocess.Popen(
        words, stdout=subprocess.PIPE, cwd=paired.ROOT, start_new_session=True
    )
    try:
        printed, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        printed, _ = process.communicate()
    lines = [line for line in printed.decode().split("\n")[:-1] if line[:1] in ("[", "{")]
    return json.loads(lines[-1]) if lines else None


def stored() -> dict[str, Any]:
    """results/accelerator.json, or nothing as long as no device has been measured."""
    path = paired.RESULTS / "accelerator.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def columns(record: dict[str, Any]) -> dict[str, paired.Column]:
    """The GPU column of each table: first cells of a row → text; empty where not measured."""
    found: dict[str, paired.Column] = {}
    found["descent_steps"] = {
        ", ".join(map(str, row["shape"])): _of_step(record, row)
        for row in record.get("descent_steps") or ()
    }
    found["many"] = {
        f"ufm, {count} mapped": f"{x:.3g} µs" for count, x in (record.get("many") or {}).items()
    }
    found["certified"] = {
        str(row["K"]): f"{row['seconds']:.3g} s, gap {max(row['gap'], 0):.0e}"
        for row in record.get("certified") or ()
    }
    found["eigenpairs"] = {
        f"{', '.join(map(str, row['K, d, n']))} | {row['point']} | ufm": f"{row['seconds']:.3g} s"
        for row in record.get("eigenpairs") or ()
    }
    from benchmarks.growth import FIXED  # imports JAX, which a section does by itself

    found["growth"] = {
        f"a step, {FIXED['step'][row['axis']]} | {row['axis']}": (
            f"{row['exponent']:.2f}, {row['exponent_upper']:.2f}"
        )
        for row in record.get("growth") or ()
    }
    found["memory"] = {
        ", ".join(map(str, row["shape"])): "{:.0f} against {:.0f} MiB".format(
            *(row["peak_bytes"][who] / 2**20 for who in ("ufm", "naive"))
        )
        for row in record.get("memory") or ()
    }
    found["first_result"] = {
        TASKS[name][0]: "{:.2f} / {:.2f} s".format(
            *(row[kind][0]["seconds"] for kind in ("cold", "warm"))
        )
        for name, row in (record.get("first_result") or {}).items()
    }
    return found


def _of_step(record: dict[str, Any], row: dict[str, Any]) -> str:
    own, plain = (row["microseconds"].get(who) for who in ("ufm", "naive"))
    told = f"{own:.4g} µs" + (f", naive JAX {plain / own:.2f}×" if plain else "")
    if (device := record.get("rates")) is None:
        return told
    rate = device["operations_a_second"]["float32, highest"]
    products = row["operations"] / (1e-6 * own) / rate
    copied = row["update_bytes"] / (1e-6 * own) / device["copied_bytes_a_second"]
    return f"{told}, {products:.0%} of products, {copied:.0%} of copies"


def table(record: dict[str, Any]) -> str:
    """Markdown tables of the device's rates, and of steps as N grows."""
    device = record.get("rates")
    if device is None:
        return f"GPU: {paired.ABSENT}"
    rate = device["operations_a_second"]
    header = (device["device"], *rate, "copies")
    cells = [f"{x / 1e12:.3g} Tflop/s" for x in rate.values()]
    copied = f"{device['copied_bytes_a_second'] / 1e9:.4g} GB/s"
    steps = paired.table(
        ("K, d, n", 'a step in float32, at "highest"'),
        (
            (", ".join(map(str, row["shape"])), _of_step(record, row))
            for row in (record.get("descent_steps") or []) + (record.get("larger") or [])
        ),
    )
    return f"{paired.table(header, [('a second', *cells, copied)])}\n\n{steps}"


def main(small: bool) -> None:
    """Measure, write results/accelerator.json unless it is the small form, print the tables."""
    begun = time.monotonic()
    if not small and _told([sys.executable, "-c", BACKEND], 60) in (None, ["cpu"]):
        sys.exit("JAX finds no accelerator here: nothing to measure. Try the command with --small")
    environment = paired.environment(PACKAGES) | {"threads": "those of the device"}

    def keep(record: dict[str, Any]) -> None:
        if not small:
            paired.write("accelerator", {"environment": environment, **record})

    record = measure(small, BUDGET - (time.monotonic() - begun), keep)
    print(table(record))
    print(json.dumps(columns(record), indent=1, ensure_ascii=False))
    print(f"{time.monotonic() - begun:.0f} s in all")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--section", choices=tuple(SECTIONS))
    parser.add_argument("--small", action="store_true")
    given = parser.parse_args()
    if given.section:
        print(json.dumps(SECTIONS[given.section](SMALL if given.small else FULL)), flush=True)
    else:
        main(given.small)
