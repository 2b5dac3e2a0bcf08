"""Peak memory of a whole run beside that of fifteen lines of naive JAX.

200 steps of heavy ball in float32, each contestant in a process of its own, whose peak of resident
memory counts the interpreter, its libraries and the compiler too. Ours records and certifies on the
way, as `ufm.descend` does by itself; the naive one keeps the loss of every step.

    python -m benchmarks.memory
"""

import argparse
import json
import os
import resource
import subprocess
import sys
from typing import Any

from benchmarks import paired

SHAPES = ((10, 20, 100), (10, 512, 5000), (1000, 512, 10))
STEPS, LEARNING_RATE, MOMENTUM, DECAY = 200, 0.1, 0.9, 5e-4
CONTESTANTS = ("ufm", "naive")
PACKAGES = ("ufm", "jax", "jaxlib", "numpy", "optax")


def peak(who: str, shape: tuple[int, int, int]) -> int:
    """Bytes at the most of this process, or of its accelerator, after its run."""
    import jax
    import jax.numpy as jnp

    import ufm
    from benchmarks import naive

    problem = ufm.Problem(*shape, DECAY, DECAY, DECAY)
    start = ufm.init_params(jax.random.key(0), problem, dtype=jnp.float32)
    if who == "ufm":
        ufm.descend(
            problem, start, "heavy_ball", steps=STEPS, learning_rate=LEARNING_RATE,
            momentum=MOMENTUM,
        )  # fmt: skip
    else:
        naive.run(problem, start, STEPS, LEARNING_RATE, MOMENTUM)
    device = jax.devices()[0]
    if device.platform != "cpu":
        return (device.memory_stats() or {}).get("peak_bytes_in_use", 0)
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def measure(shape: tuple[int, int, int]) -> dict[str, Any]:
    """Peaks of all contestants at a shape (K, d, n)."""
    peaks = {}
    for who in CONTESTANTS:
        words = [sys.executable, "-m", "benchmarks.memory", "--contestant", who, "--shape"]
        told = subprocess.run(
            [*words, *map(str, shape)], check=True, capture_output=True, text=True,
            cwd=paired.ROOT,
        )  # fmt: skip
        peaks[who] = json.loads(told.stdout)
    K, d, n = shape
    return {"shape": shape, "peak_bytes": peaks, "features_bytes": 4 * d * K * n}


def table(results: list[dict[str, Any]], gpu: paired.Column | None = None) -> str:
    """Markdown table of peaks in MiB."""
    header = ("K, d, n", "features, MiB", "ufm, MiB", "naive JAX, MiB", "ufm / naive")
    rows = []
    for row in results:
        ours, theirs = (row["peak_bytes"][who] for who in CONTESTANTS)
        sizes = (f"{x / 2**20:.0f}" for x in (row["features_bytes"], ours, theirs))
        rows.append((", ".join(map(str, row["shape"])), *sizes, f"{ours / theirs:.2f}"))
    return paired.table(header, rows, gpu)


def main() -> None:
    """Measure all shapes, write results/memory.json, print the table."""
    environment = paired.environment(PACKAGES) | {"threads": f"XLA: {os.cpu_count()}"}
    results = [measure(shape) for shape in SHAPES]
    paired.write("memory", {"environment": environment, "results": results})
    print(table(results))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--contestant", choices=CONTESTANTS)
    parser.add_argument("--shape", type=int, nargs=3)
    given = parser.parse_args()
    if given.contestant:
        print(peak(given.contestant, tuple(given.shape)))
    else:
        main()
