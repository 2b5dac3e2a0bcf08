"""Seconds from a fresh process to a first result: what a user waits for, by what it is spent on.

Every task is a process of its own, timed by the one that starts it: from its start to its end, the
interpreter and all imports among it. Cold: JAX's persistent cache of compiled programs is empty.
Warm: the same process once more, after the cold one has filled it. The cache is switched on by the
commands; the library leaves that to its user, who does it as these tasks do
(JAX_COMPILATION_CACHE_DIR, JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=0). JAX itself tells how many
programs were asked for and the seconds of tracing, lowering and compiling, or of loading from the
cache; what runs on several threads counts on each, other processes of a sweep do not. Bytecode of
all packages is in place, as `pip install` leaves it.

    python -m benchmarks.first_result
"""

import argparse
import compileall
import json
import math
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import paired

ROUNDS = 3
PACKAGES = ("ufm", "jax", "jaxlib", "numpy", "optax", "torch")
# One problem for `ufm.solve` and PyTorch, to a certified gap of 1e-6 (`ufm.solve`: to rounding).
SIZES, DECAY, GAP, CHECK = (10, 20, 100), 5e-4, 1e-6, 20
# The grid of README, 72 cells: `tests/test_benchmarks.py` holds it against the page.
GRID = """K = [3, 5]
d = 8
n = 10
lam = [1e-3, 5e-3, 1e-2]
seed = [0, 1, 2, 3]
steps = 20000
gap_tol = 1e-8

[[grid]]
optimizer = "lbfgs"

[[grid]]
optimizer = "heavy_ball"
learning_rate = ["auto", 0.5]
"""
# Seconds on two idle cores, cold and warm.
TARGETS = {
    "descend": (2.5, 1.5), "probe": (3.0, 1.8), "solve": (2.5, 1.5), "sweep": (10.0, 5.0),
}  # fmt: skip
# JAX's names of what it times.
SPENT = {
    "tracing": "/jax/core/compile/jaxpr_trace_duration",
    "lowering": "/jax/core/compile/jaxpr_to_mlir_module_duration",
    "compiling": "/jax/core/compile/backend_compile_duration",
}


def imported(_place: Path) -> None:
    """`import ufm`, and jax with it."""
    import jax  # noqa: F401

    import ufm  # noqa: F401


def descend(_place: Path) -> None:
    """README's first `descend`."""
    import jax

    import ufm

    jax.config.update("jax_enable_x64", True)
    problem = ufm.Problem(K=4, d=6, n=25, lam_W=5e-3, lam_H=5e-3, lam_b=5e-3)
    params = ufm.init_params(jax.random.key(0), problem, scale=0.1)
    run = ufm.descend(problem, params, "lbfgs", steps=1000, gap_tol=1e-9)
    assert run.status == "certified"


def naive_jax(_place: Path) -> None:
    """The same problem by optax's L-BFGS in fifteen lines, as many steps, without a certificate."""
    import jax
    import numpy as np

    import ufm
    from benchmarks import naive

    jax.config.update("jax_enable_x64", True)
    problem = ufm.Problem(K=4, d=6, n=25, lam=5e-3)
    draw = np.random.default_rng(0).standard_normal
    start = (0.1 * draw((4, 6)), 0.1 * draw((6, 100)), np.zeros(4))
    _, losses = naive.lbfgs(start, np.repeat(np.arange(4), 25), 5e-3, steps=40)
    assert abs(float(losses[-1]) - float(ufm.theory.global_value(problem))) < 1e-9


def solve(_place: Path) -> None:
    """`ufm.solve` from a random start to rounding."""
    import jax

    import ufm

    jax.config.update("jax_enable_x64", True)
    problem = ufm.Problem(*SIZES, DECAY, DECAY, DECAY)
    solution = ufm.solve(problem, ufm.init_params(jax.random.key(0), problem))
    assert solution.status == "converged"


def pytorch(_place: Path) -> None:
    """The same problem by PyTorch's L-BFGS, leg by leg, until f is within GAP of f*.

    f* is a number here: a PyTorch user has no certificate, and is charged for none. One thread: at
    these sizes more are slower, and on a busy machine many times so.
    """
    import torch

    from benchmarks import torch_lbfgs

    torch.set_num_threads(1)
    (K, d, n), least = SIZES, float(os.environ["UFM_LEAST_VALUE"])
    torch.manual_seed(0)
    labels = torch.arange(K).repeat_interleave(n)
    W, H, b = (
        torch.nn.Parameter(0.1 * torch.randn(*shape, dtype=torch.float64))
        for shape in ((K, d), (d, K * n), (K,))
    )
    leg = torch_lbfgs.leg((W, H, b), labels, (DECAY,) * 3, CHECK)
    value = math.inf
    while value - least > GAP:
        value = leg()  # of the point before it


def command(*words: str) -> Callable[[Path], None]:
    """The command `ufm`, in the folder of the benchmark."""

    def act(place: Path) -> None:
        from ufm import cli

        os.chdir(place)
        assert cli.main(words, caching=True) == 0

    return act


FIRST = ("--K", "10", "--d", "20", "--n", "100", "--optimizer", "lbfgs", "--gap-tol", "1e-8")
TASKS: dict[str, tuple[str, Callable[[Path], None]]] = {
    "import": ("import ufm", imported),
    "descend": ("README's first `descend`", descend),
    "naive": ("naive JAX, optax's L-BFGS on the same", naive_jax),
    "solve": ("`ufm.solve`, (10, 20, 100)", solve),
    "torch": ("PyTorch's L-BFGS on the same, one thread", pytorch),
    "first": ("`ufm descend … --out first`", command("descend", *FIRST, "--out", "first")),
    "probe": ("`ufm probe first --polish`", command("probe", "first", "--polish")),
    "sweep": ("README's grid, 72 cells", command("sweep", "grid.toml")),
}


def child(name: str, place: Path) -> None:
    """Run a task in this process and print what JAX spent on it."""
    told: dict[str, list[float]] = {event: [] for event in SPENT.values()}
    if name != "torch":
        from jax import monitoring

        def note(event: str, duration_secs: float, **_: Any) -> None:
            if event in told:
                told[event].append(duration_secs)

        monitoring.register_event_duration_secs_listener(note)
    TASKS[name][1](place)
    spent = {what: sum(told[event]) for what, event in SPENT.items()}
    (place / "told.json").write_text(
        json.dumps(spent | {"programs": len(told[SPENT["compiling"]])}), encoding="utf-8"
    )


def once(name: str, place: Path, cache: Path) -> dict[str, float]:
    """One process: its seconds, and what it told."""
    surroundings = os.environ | {
        "XDG_CACHE_HOME": str(cache),  # that of the commands
        "PYTHONPATH": os.pathsep.join([str(paired.ROOT), os.environ.get("PYTHONPATH", "")]),
        "UFM_LEAST_VALUE": str(_least_value() if name == "torch" else 0.0),
    }
    if name in ("descend", "naive", "solve", "import"):
        surroundings |= {
            "JAX_COMPILATION_CACHE_DIR": str(cache / "library"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_ENABLE_COMPILATION_CACHE": "1",
        }
    words = [sys.executable, "-m", "benchmarks.first_result", "--task", name, "--place", str(place)]
    if name == "first":  # a finished run would not be computed twice
        shutil.rmtree(place / "first", ignore_errors=True)
    begun, used = time.perf_counter(), _processor_seconds()
    subprocess.run(words, check=True, env=surroundings, stdout=subprocess.DEVNULL)
    spent = {"seconds": time.perf_counter() - begun, "processor": _processor_seconds() - used}
    return spent | json.loads((place / "told.json").read_text(encoding="utf-8"))


def _processor_seconds() -> float:
    """Of all processes that have ended: what a busy machine changes least."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _least_value() -> float:
    import ufm

    return float(ufm.theory.global_value(ufm.Problem(*SIZES, DECAY, DECAY, DECAY)))


def measure(names: tuple[str, ...], rounds: int) -> dict[str, dict[str, list[dict[str, float]]]]:
    """Every task cold and warm, one after the other within a round."""
    told: dict[str, dict[str, list[dict[str, float]]]] = {
        name: {"cold": [], "warm": []} for name in names
    }
    for folder in ("ufm", "benchmarks"):
        compileall.compile_dir(paired.ROOT / folder, quiet=1)
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as folder:
            place = Path(folder)
            (place / "grid.toml").write_text(GRID, encoding="utf-8")
            for name in names:
                cache = place / f"cache-{name}"
                cache.mkdir()
                told[name]["cold"].append(once(name, place, cache))
                told[name]["warm"].append(once(name, place, cache))
    return told


def table(
    results: dict[str, dict[str, list[dict[str, float]]]], gpu: paired.Column | None = None
) -> str:
    """Markdown table: seconds cold and warm, and what the cold ones went into."""
    header = ("a fresh process", "cold (s)", "warm (s)", "target", "processor, cold (s)",
              "programs", "tracing", "lowering", "compiling", "loading, warm")  # fmt: skip
    rows = []
    for name, (what, _) in TASKS.items():
        if name not in results:
            rows.append((what, *[paired.ABSENT] * 2, *[""] * 7))
            continue
        cold, warm = (results[name][kind] for kind in ("cold", "warm"))
        target = "{} / {}".format(*TARGETS[name]) if name in TARGETS else ""
        spent = [f"{paired.median(cold, part):.2f}" for part in SPENT]
        rows.append((
            what, f"{paired.median(cold, 'seconds'):.2f}", f"{paired.median(warm, 'seconds'):.2f}",
            target, f"{paired.median(cold, 'processor'):.2f}",
            f"{paired.median(cold, 'programs'):.0f}", *spent,
            f"{paired.median(warm, 'compiling'):.2f}",
        ))  # fmt: skip
    return paired.table(header, rows, gpu)


def main() -> None:
    """Measure, write results/first_result.json, print the table."""
    environment = paired.environment(PACKAGES) | {"threads": "XLA: one a core; PyTorch: 1"}
    names = tuple(name for name in TASKS if name != "torch" or paired.installed("torch"))
    results = measure(names, ROUNDS)
    paired.write("first_result", {"environment": environment, "results": results})
    print(table(results))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--task", choices=tuple(TASKS))
    parser.add_argument("--place", type=Path)
    given = parser.parse_args()
    if given.task:
        child(given.task, given.place)
    else:
        main()
