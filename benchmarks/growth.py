"""How time grows with N, K and d: a descent step, and the way to a certificate.

    seconds ≈ c · x^p,   x one of N, K, d, the others fixed; p by least squares in logarithms

A step is full-batch heavy ball in float32. The certificate is `ufm.solve` in float64 from a random
start to a certified gap of at most 1e-8, at decays with K² n λ_W λ_H = 1e-4, the same distance
from the collapse to zero everywhere. Exponents are fitted to all sizes and to their upper half
(p, p⁺), as small sizes cost calls rather than arithmetic: by count of operations a step grows
as N, K and d to the first power. Every time is the median of rounds that go once through all sizes.

    python -m benchmarks.growth
"""

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

import ufm
from benchmarks import paired
from ufm import plots
from ufm.descent import loop
from ufm.descent import run as descent
from ufm.runtime import loops

ROUNDS, SECONDS, DISTANCE, GAP = 3, 0.2, 1e-4, 1e-8
PACKAGES = ("ufm", "jax", "jaxlib", "numpy", "optax")
# Shapes (K, d, n) along each axis; the one that grows comes with its fixed companions.
STEP = {
    "N": [(10, 64, n) for n in (10, 40, 160, 640, 2560, 10240)],
    "K": [(K, 64, 8192 // K) for K in (4, 16, 64, 256, 1024)],
    "d": [(10, d, 400) for d in (8, 32, 128, 512, 2048)],
}
SOLVE = {
    "N": [(10, 16, n) for n in (10, 40, 160, 640, 2560, 10240)],
    "K": [(K, K, 10) for K in (2, 6, 20, 60, 200)],
    "d": [(10, d, 10) for d in (10, 40, 160, 640, 2560)],
}
FIXED = {
    "step": {"N": "K=10, d=64", "K": "d=64, N=8192", "d": "K=10, N=4000"},
    "certificate": {"N": "K=10, d=16", "K": "d=K, n=10", "d": "K=10, n=10"},
}


def size(axis: str, shape: tuple[int, int, int]) -> int:
    """The size that grows: N = Kn, K or d."""
    K, d, n = shape
    return {"N": K * n, "K": K, "d": d}[axis]


def a_step(shape: tuple[int, int, int]) -> Callable[[], float]:
    """Seconds a step, of as many compiled steps as take `SECONDS`."""
    problem = ufm.Problem(*shape, 5e-4, 5e-4, 5e-4)
    start = ufm.init_params(jax.random.key(0), problem, dtype=jnp.float32)
    method, hyper = descent.prepare(problem, 1.0, "heavy_ball", 0.1, 0.9)
    state = jax.jit(loop.start, static_argnames="method")(problem, start, method, hyper)

    @jax.jit
    def steps(state, count):
        return loops.repeat(count, partial(loop.step, problem, method, hyper), state)

    def run(count: int) -> Any:
        return jax.block_until_ready(steps(state, count))

    run(1)
    count = max(1, int(SECONDS / paired.seconds(partial(run, 1))))
    return lambda: paired.seconds(partial(run, count)) / count


def a_certificate(shape: tuple[int, int, int]) -> Callable[[], float]:
    """Seconds of `ufm.solve` to a certified minimum."""
    K, _, n = shape
    lam = (DISTANCE / (K**2 * n)) ** 0.5
    problem = ufm.Problem(*shape, lam, lam, lam)
    start = ufm.init_params(jax.random.key(0), problem)
    gap = ufm.certify(problem, ufm.solve(problem, start).params).gap
    assert gap <= GAP, f"{shape}: gap {gap}"

    def run() -> float:
        begun = time.perf_counter()
        jax.block_until_ready(ufm.solve(problem, start).params)
        return time.perf_counter() - begun

    return run


def exponent(sizes: list[int], seconds: list[float]) -> float:
    """p of the least-squares line log s = log c + p log x."""
    return float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])


def measure(axis: str, shapes: list, prepare: Callable) -> dict[str, Any]:
    """Median seconds at every shape of an axis, and both exponents."""
    runs = [prepare(shape) for shape in shapes]
    seconds = np.median([[run() for run in runs] for _ in range(ROUNDS)], axis=0).tolist()
    sizes = [size(axis, shape) for shape in shapes]
    upper = len(sizes) // 2
    return {
        "axis": axis, "shapes": shapes, "sizes": sizes, "seconds": seconds,
        "exponent": exponent(sizes, seconds),
        "exponent_upper": exponent(sizes[upper:], seconds[upper:]),
    }  # fmt: skip


def draw(results: dict[str, list[dict[str, Any]]]) -> Figure:
    """Time against size, log-log; the fit to the upper half dashed."""
    with plots.style():
        canvas, axes = plots.figure("icml_text", 2.3, 1, 2)
        for ax, (what, rows) in zip(axes[0], results.items(), strict=True):
            for index, row in enumerate(rows):
                x, s = np.array(row["sizes"]), np.array(row["seconds"])
                upper = x[len(x) // 2 :]
                p = row["exponent_upper"]
                at = np.exp(np.mean(np.log(s[len(x) // 2 :]) - p * np.log(upper)))
                label = f"${row['axis']}^{{{p:.2f}}}$ ({FIXED[what][row['axis']]})"
                ax.plot(
                    x, s, plots.MARKERS[index], color=plots.colour(index), linestyle="-",
                    label=label, markersize=3,
                )  # fmt: skip
                ax.plot(upper, at * upper**p, color="black", linestyle=plots.DASHED, linewidth=0.8)
            ax.set(xscale="log", yscale="log", xlabel="$N$, $K$ or $d$")
            ax.legend(loc="upper left" if what == "step" else "upper right")
            low, high = ax.get_ylim()
            ax.set_ylim(low, high * (30 if what == "step" else 3))
        axes[0, 0].set_ylabel("seconds a step, float32")
        axes[0, 1].set_ylabel(r"seconds to a certified gap $\leq 10^{-8}$")
    return canvas


def table(results: dict[str, list[dict[str, Any]]], gpu: paired.Column | None = None) -> str:
    """Markdown table of ranges and exponents."""
    header = ("time of", "grows", "from", "to", "seconds", "exponent", "of the upper half")
    return paired.table(
        header,
        (
            (
                f"a {what}, {FIXED[what][row['axis']]}", row["axis"], f"{row['sizes'][0]:,}",
                f"{row['sizes'][-1]:,}", f"{row['seconds'][0]:.2g} … {row['seconds'][-1]:.2g}",
                f"{row['exponent']:.2f}", f"{row['exponent_upper']:.2f}",
            )
            for what, rows in results.items()
            for row in rows
        ),
        gpu, keys=2,
    )  # fmt: skip


def main() -> None:
    """Measure all axes, write results/growth.json, print the table."""
    jax.config.update("jax_enable_x64", True)
    environment = paired.environment(PACKAGES) | {"threads": "XLA: one a core; LAPACK: 1"}
    results: dict[str, list[dict[str, Any]]] = {}
    for what, axes, prepare in (("step", STEP, a_step), ("certificate", SOLVE, a_certificate)):
        results[what] = []
        for axis, shapes in axes.items():
            print(f"measuring a {what} against {axis} …", flush=True)
            results[what].append(measure(axis, shapes, prepare))
    paired.write("growth", {"environment": environment, "results": results})
    print(table(results))


if __name__ == "__main__":
    main()
