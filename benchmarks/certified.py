"""Time from a random start to a certified gap of 1e-8: `ufm.solve` against two L-BFGS of others.

All three minimise the same problem in float64 from the same start. SciPy's L-BFGS-B gets the
objective and closed-form gradient of `ufm`, compiled, as one flat vector; `torch.optim.LBFGS` with
its strong Wolfe line search gets the model as a PyTorch user would write it, once with one thread
and once with one a core (at K = 1000 with the latter alone); the quicker counts. Both are certified
every 20 iterations, outside the clock, and end when the gap is at most 1e-8. `ufm.solve` has no
such rule: it always goes on to rounding. Who takes `PATIENCE` times as long as `ufm.solve` is
stopped, and the ratio is a lower bound. Compilation is a column of its own.

    python -m benchmarks.certified        (needs pip install -e ".[bench]")
"""

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize
from threadpoolctl import threadpool_limits

import ufm
from benchmarks import paired
from ufm.hessian.curvature import flatten, unflatten

SIZES = (10, 100, 1000)  # K = d
SAMPLES, DECAY, SCALE, GAP = 10, 1e-5, 0.1, 1e-8
ROUNDS = {10: 25, 100: 3, 1000: 1}
CHECK = 20  # iterations between two certificates, which are outside the clock
PATIENCE = {10: 1000, 100: 100, 1000: 5.2}  # times our seconds
PACKAGES = ("ufm", "jax", "jaxlib", "numpy", "scipy", "torch")


def problem_and_start(K: int) -> tuple[ufm.Problem, ufm.Params]:
    """Balanced, d = K, far below the threshold of collapse at λ = 1e-5 × 10/K."""
    lam = DECAY * 10 / K
    problem = ufm.Problem(K, K, SAMPLES, lam, lam, lam)
    return problem, ufm.init_params(jax.random.key(0), problem, SCALE)


def gap_of(problem: ufm.Problem, params: ufm.Params) -> float:
    """The certified gap in nats."""
    return float(ufm.certify(problem, params).gap)


def ours(problem: ufm.Problem, start: ufm.Params, _limit: float) -> tuple[float, float]:
    """(seconds, gap) of `ufm.solve`."""
    begun = time.perf_counter()
    solution = ufm.solve(problem, start)
    jax.block_until_ready(solution.params)
    return time.perf_counter() - begun, gap_of(problem, solution.params)


def legs(problem: ufm.Problem, leg: Callable[[], ufm.Params], limit: float) -> tuple[float, float]:
    """(seconds of the legs alone, gap): leg after leg until certified or out of time."""
    spent = 0.0
    while True:
        begun = time.perf_counter()
        params = leg()
        spent += time.perf_counter() - begun
        gap = gap_of(problem, params)
        if gap <= GAP or spent > limit:
            return spent, gap


def scipy_lbfgs(problem: ufm.Problem, start: ufm.Params, limit: float) -> tuple[float, float]:
    """L-BFGS-B on the flat vector; certified every `CHECK` iterations, outside the clock."""

    @jax.jit
    def value_and_gradient(x):
        params = unflatten(problem, x)
        return ufm.objective(problem, params), flatten(problem, ufm.gradient(problem, params))

    x0 = np.asarray(flatten(problem, start))
    jax.block_until_ready(value_and_gradient(x0))

    def fun(x):
        f, g = value_and_gradient(x)
        return float(f), np.asarray(g)

    checked, count = 0.0, 0
    begun = time.perf_counter()

    def callback(x):
        nonlocal checked, count
        count += 1
        if count % CHECK == 0:
            at = time.perf_counter()
            gap = gap_of(problem, unflatten(problem, jnp.asarray(x)))
            checked += time.perf_counter() - at
            if gap <= GAP or at - begun - checked > limit:
                raise StopIteration

    options = {"maxiter": 10**6, "maxfun": 10**7, "ftol": 0.0, "gtol": 0.0, "maxcor": 10}
    # Its own sums are short: threads of BLAS would wait for one another, and for XLA's.
    with threadpool_limits(1, user_api="blas"):
        done = scipy.optimize.minimize(
            fun, x0, jac=True, method="L-BFGS-B", callback=callback, options=options
        )
    return time.perf_counter() - begun - checked, gap_of(
        problem, unflatten(problem, jnp.asarray(done.x))
    )


def by_torch(problem: ufm.Problem, start: ufm.Params, limit: float) -> tuple[float, float]:
    """`torch.optim.LBFGS`, history 10, strong Wolfe, `CHECK` iterations a leg."""
    import torch

    from benchmarks import torch_lbfgs

    labels = torch.tensor(problem.labels, dtype=torch.long)
    W, H, b = (torch.nn.Parameter(torch.tensor(np.asarray(x))) for x in start)
    lam_W, lam_H, lam_b = (float(x) for x in (problem.lam_W, problem.lam_H, problem.lam_b))
    ahead = torch_lbfgs.leg((W, H, b), labels, (lam_W, lam_H, lam_b), CHECK)

    def leg() -> ufm.Params:
        ahead()
        return ufm.Params(*(jnp.asarray(x.detach().numpy()) for x in (W, H, b)))

    return legs(problem, leg, limit)


def torch_on(threads: int) -> Callable[[ufm.Problem, ufm.Params, float], tuple[float, float]]:
    """`by_torch` on so many threads."""

    def run(problem: ufm.Problem, start: ufm.Params, limit: float) -> tuple[float, float]:
        import torch

        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            return by_torch(problem, start, limit)
        finally:
            torch.set_num_threads(before)

    return run


def measure(K: int) -> dict[str, Any]:
    """Rounds of all at one size."""
    problem, start = problem_and_start(K)
    first, _ = ours(problem, start, np.inf)
    contestants: dict[str, Any] = {"scipy": scipy_lbfgs}
    if paired.installed("torch"):
        # One thread is slower at the largest size, and would take minutes to be stopped.
        counts = {1, paired.cores()} if max(SIZES) > K else {paired.cores()}
        contestants |= {f"torch, {n}": torch_on(n) for n in sorted(counts)}
    rounds, gaps = [], {}
    for _ in range(ROUNDS[K]):
        once = {"ufm": ours(problem, start, np.inf)}
        limit = PATIENCE[K] * once["ufm"][0]
        once |= {name: run(problem, start, limit) for name, run in contestants.items()}
        rounds.append({name: seconds for name, (seconds, _) in once.items()})
        gaps = {name: gap for name, (_, gap) in once.items()}
    return {
        "K": K, "d": K, "n": SAMPLES, "lam": float(problem.lam_W), "gaps": gaps,
        "seconds": {name: paired.median(rounds, name) for name in rounds[0]},
        "over_ufm": {name: paired.median(rounds, name, "ufm") for name in rounds[0]},
        "compile_seconds": first - paired.median(rounds, "ufm"), "rounds": rounds,
    }  # fmt: skip


def quickest(row: dict[str, Any], who: str) -> str | None:
    """The name of a contestant on the number of threads where it is quickest, if it is there."""
    names = [name for name in row["seconds"] if name.partition(",")[0] == who]
    return min(
        names, key=lambda name: (row["gaps"][name] > GAP, row["seconds"][name]), default=None
    )


def table(results: list[dict[str, Any]], gpu: paired.Column | None = None) -> str:
    """Markdown table of the results."""
    header = (
        "K = d", "ufm.solve (s)", "its gap", "SciPy L-BFGS-B (s)", "its gap",
        "torch LBFGS (s)", "its gap", "SciPy / ufm", "torch / ufm", "compile (s)",
    )  # fmt: skip
    rows = []
    for r in results:
        row, names = [str(r["K"])], [quickest(r, who) for who in ("ufm", "scipy", "torch")]
        for name in names:
            row += (
                [f"{r['seconds'][name]:.3g}", f"{max(r['gaps'][name], 0):.0e}"]
                if name
                else [paired.ABSENT, ""]
            )
        # A contestant that was stopped has a gap above the one asked for.
        row += [
            f"{'> ' * (r['gaps'][name] > GAP)}{r['over_ufm'][name]:.1f}" if name else paired.ABSENT
            for name in names[1:]
        ]
        rows.append([*row, f"{max(r['compile_seconds'], 0):.1f}"])
    return paired.table(header, rows, gpu)


def main() -> None:
    """Measure all sizes, write results/certified.json, print the table."""
    jax.config.update("jax_enable_x64", True)
    environment = paired.environment(PACKAGES) | {
        "threads": "XLA: one a core; LAPACK and SciPy: 1; PyTorch: behind its name"
    }
    results = []
    for K in SIZES:
        print(f"measuring K = {K} …", flush=True)
        results.append(measure(K))
        paired.write("certified", {"environment": environment, "results": results})
    print(table(results))


if __name__ == "__main__":
    main()
