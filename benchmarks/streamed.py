"""NC1–NC4 of a stream of ImageNet's size that is never held: seconds and peak memory.

N samples of K classes in d dimensions, Gaussian about Gaussian class means, drawn anew in every
pass from the number of the batch. Each row is a process of its own, whose peak of resident memory
counts the interpreter and its libraries too. Agreement is the largest relative difference to
`metrics.collapse` of the whole array, at an N that fits.

    python -m benchmarks.streamed [--N 1280000]
"""

import argparse
import collections
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from benchmarks import paired
from ufm import metrics

SHAPE = (1000, 2048, 1_280_000)
SMALL = 20_000  # samples of the comparison with the whole array
BATCH = 4096
PACKAGES = ("ufm", "numpy", "scipy")


def classifier(K: int, d: int) -> tuple[np.ndarray, np.ndarray]:
    """Class means (K, d) in float32, and a noisy copy of them as W."""
    rng = np.random.default_rng(0)
    means = rng.standard_normal((K, d), np.float32)
    return means, means + 0.5 * rng.standard_normal((K, d), np.float32)


def batches(means: np.ndarray, N: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Features (m, d) in float32 and labels (m,): the same in every pass."""
    for start in range(0, N, BATCH):
        rng, m = np.random.default_rng(start + 1), min(BATCH, N - start)
        labels = (start + np.arange(m)) * 7 % len(means)
        features = rng.standard_normal((m, means.shape[1]), np.float32)
        features += means[labels]
        yield features, labels


def stream(K: int, d: int, N: int, passes: int) -> metrics.Accumulator:
    """All batches, once or twice."""
    means, W = classifier(K, d)
    seen = metrics.Accumulator(W, passes=passes)
    for step in (seen.add, seen.again)[:passes]:
        for features, labels in batches(means, N):
            step(features, labels)
    return seen


def drawn(K: int, d: int, N: int) -> float:
    """Seconds to draw the batches alone."""
    means, _ = classifier(K, d)
    begun = time.perf_counter()
    collections.deque(batches(means, N), maxlen=0)
    return time.perf_counter() - begun


def row(K: int, d: int, N: int, passes: int) -> dict[str, Any]:
    """Seconds and peak memory of this process."""
    begun = time.perf_counter()
    found = stream(K, d, N, passes).collapse()
    seconds = time.perf_counter() - begun
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {
        "K": K, "d": d, "N": N, "passes": passes, "seconds": seconds,
        "drawing": passes * drawn(K, d, min(N, 16 * BATCH)) * N / min(N, 16 * BATCH),
        "peak_bytes": peak, "features_bytes": 4 * N * d, "nc1": found.nc1,
    }  # fmt: skip


def agreement(K: int, d: int, N: int, passes: int) -> float:
    """Largest relative difference of a field to that of the whole array."""
    means, W = classifier(K, d)
    parts = list(batches(means, N))
    H = np.concatenate([features for features, _ in parts])
    whole = metrics.collapse(W, H.T, None, np.concatenate([labels for _, labels in parts]))
    found = stream(K, d, N, passes).collapse()
    pairs = [(x, y) for x, y in zip(found, whole, strict=True) if x is not None]
    return max(abs(x - y) / (abs(y) or 1.0) for x, y in pairs)


def main(N: int = SHAPE[2]) -> None:
    """Print a table and keep the figures."""
    environment, rows = paired.environment(PACKAGES), []
    environment["threads"] = os.environ.get("OPENBLAS_NUM_THREADS", "as many as cores")
    for passes in (1, 2):
        command = [sys.executable, "-m", "benchmarks.streamed", "--N", str(N), "--passes"]
        told = subprocess.run([*command, str(passes)], check=True, capture_output=True, text=True)
        rows.append(json.loads(told.stdout))
        paired.write("streamed", environment | {"rows": rows})
    # Afterwards: a process counts the memory of the one that started it into its own peak.
    for found in rows:
        found["difference"] = agreement(*SHAPE[:2], min(N, SMALL), found["passes"])
    paired.write("streamed", environment | {"rows": rows})
    header = ("passes", "K, d, N", "seconds", "of them drawing", "peak, MiB", "features, MiB",
              "largest relative difference")  # fmt: skip
    print(paired.table(header, (
        (str(r["passes"]), f"{r['K']}, {r['d']}, {r['N']}", f"{r['seconds']:.0f}",
         f"{r['drawing']:.0f}", f"{r['peak_bytes'] / 2**20:.0f}",
         f"{r['features_bytes'] / 2**20:.0f}", f"{r['difference']:.1e}")
        for r in rows
    )))  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--N", type=int, default=SHAPE[2])
    parser.add_argument("--passes", type=int)
    given = parser.parse_args()
    if given.passes:
        print(json.dumps(row(*SHAPE[:2], given.N, given.passes)))
    else:
        main(given.N)
