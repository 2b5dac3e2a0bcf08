"""`ufm descend`: minimise the model, and store the run on disk."""

import contextlib
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from ufm import check
from ufm.certificate import certify
from ufm.commands import classifiers
from ufm.commands.progress import watched
from ufm.commands.shared import FAILED, Compiling, ModelFlags, show
from ufm.descent import arguments
from ufm.descent import run as descent
from ufm.descent.records import HISTORY
from ufm.model.points import init_params
from ufm.model.problem import Params, Problem
from ufm.report import stored
from ufm.runs import manifests, record, values

STOPPED = descent.Status.step_limit.name
ARRIVED = 1e-13  # ‖∇f‖ from which further steps change nothing


@dataclass(frozen=True)
class Descend(Compiling):
    """Minimise the model from a random start, recording loss, gap and NC1-NC4.

    With --out the run is stored on disk. If it is killed or interrupted, give the same command
    again: it resumes, with the same result to the last bit. More --steps extend a finished run.

    Exit status: 0 done, 1 diverged, 2 refused, 130 interrupted.

    Example: ufm descend --optimizer lbfgs --gap-tol 1e-8 --out runs/first
    """

    model: Annotated[ModelFlags, tyro.conf.OmitArgPrefixes] = field(default_factory=ModelFlags)
    fixed_classifier: str = ""
    """fix the classifier: etf, orthogonal (rows of norm 1), or a file that holds W (K, d)"""
    optimizer: str = "lbfgs"
    """gd, heavy_ball, nesterov, lbfgs, adam, sgd (minibatches), or one of optax, such as adamw"""
    steps: int = 10_000
    """most steps to take"""
    learning_rate: float | Literal["auto", "safe"] | None = None
    """a number, auto (each step is tested) or safe (constant); default: that of the optimiser"""
    momentum: float | None = None
    """momentum of heavy_ball, nesterov and sgd; default 0.9"""
    batch_size: int | None = None
    """minibatch size, for sgd and adam"""
    scale: float = 0.1
    """standard deviation of the random start"""
    seed: int = 0
    """seed of the start and of the minibatches"""
    record_every: int | None = None
    """steps between records, at which tolerances are tested; default: 100, at first fewer"""
    grad_tol: float | None = None
    """stop when the gradient norm is at most this; on the sphere, at most this share of f"""
    record: tuple[str, ...] = ()
    """further columns of the history: index (of the Hessian), lam_min, lam_min_off_orbit"""
    gap_tol: float | None = 1e-8
    """stop when the certified gap to the minimum is at most this; on the sphere, this share of f"""
    precision: Literal["float64", "float32"] = "float64"
    """precision of the iterates; certificates are always float64"""
    out: Path | None = None
    """folder of the run: manifest.json, arrays.npz"""
    checkpoint_seconds: float = 10.0
    """least time between two checkpoints in that folder"""
    json: bool = False
    """print JSON for machines instead of a table"""

    def problem(self) -> tuple[Problem, np.ndarray | None]:
        """(the problem, its fixed classifier, or None for one that is not fixed).

        Raises:
            Refused: a classifier that does not fit.
        """
        problem = self.model.problem()
        if not self.fixed_classifier:
            return problem, None
        problem = replace(problem, fixed=("W",))
        return problem, classifiers.named(self.fixed_classifier, problem)

    def act(self) -> int:
        """Minimise with a progress bar; resume an unfinished run."""
        problem, W = self.problem()
        params_key, batch_key = jax.random.split(check.key(self.seed))
        dtype = jnp.dtype(self.precision)
        options: dict[str, Any] = {
            name: getattr(self, name)
            for name in (
                "steps", "learning_rate", "momentum", "batch_size", "record_every", "grad_tol",
                "gap_tol", "record",
            )
        }  # fmt: skip
        options["key"] = None if self.batch_size is None else batch_key
        params = init_params(params_key, problem, self.scale, dtype, W=W)
        check.real("checkpoint_seconds", self.checkpoint_seconds, least=0)
        arguments.check(problem, params, self.optimizer, **options)
        with _kept_run(self) as handle:
            if handle is not None and handle.status == "complete":
                print(f"ufm: {handle.path} already holds this finished run", file=sys.stderr)
                return _report_run(handle.path, self._title(problem), self.json)
            run = _run(problem, params, self, options, handle)
            results = _results(problem, run)
            if handle is not None:
                arrays = dict(zip("WHb", map(np.asarray, run.params), strict=True))
                packed = descent.pack(run)
                # A run with more steps continues from there.
                arrays |= packed if run.status == STOPPED else {}
                arrays |= {name: x for name, x in packed.items() if name.startswith("history/")}
                record.close_run(handle, arrays, values.finite(results))
        _show(results, self._title(problem), self.json)
        return FAILED if run.status == "diverged" else 0

    def _title(self, problem: Problem) -> str:
        """The method, and every field of the problem."""
        told = ", ".join(f"{name}={x}" for name, x in problem.describe().items())
        return f"Descent by {self.optimizer}, {told}"


@contextlib.contextmanager
def _kept_run(command: Descend) -> Iterator[record.RunHandle | None]:
    if command.out is None:
        yield None
        return
    config = asdict(command) | {"model": command.model.config()}
    if not command.fixed_classifier:
        del config["fixed_classifier"]  # as in the folders of earlier versions
    else:
        config["model"]["fixed"] = ["W"]
        if command.fixed_classifier not in classifiers.NAMES:  # the content of a file, not its name
            problem = command.problem()[0]
            found = classifiers.named(command.fixed_classifier, problem)
            config["fixed_classifier"] = found.tolist()
    for name in ("out", "json", "checkpoint_seconds", "seed", "precision", "cache"):
        del config[name]
    if not command.record:
        del config["record"]  # as in the folders of earlier versions
    growth = record.Growth(lambda manifest: _shorter(manifest["config"], config), _last_state)
    with record.open_run(
        command.out, "descend", _ended(command.out, config), seed=command.seed,
        precision=command.precision, growth=growth,
    ) as handle:  # fmt: skip
        yield handle


def _shorter(old: Mapping[str, Any], config: dict[str, Any]) -> bool:
    """Whether a run has this config except that it has fewer steps."""
    steps = old.get("steps")
    return (
        isinstance(steps, int)
        and steps < config["steps"]
        and not values.differences(values.plain(config, "config") | {"steps": steps}, old)
    )


def _ended(path: Path, config: dict[str, Any]) -> dict[str, Any]:
    """The stored config if the run there is this one and has ended before its limit of steps."""
    if not (path / manifests.FILE).is_file():
        return config
    kept = record.load_run(path).manifest
    ended = kept["status"] == "complete" and kept["results"].get("status") != STOPPED
    return dict(kept["config"]) if ended and _shorter(kept["config"], config) else config


def _last_state(_: Mapping[str, Any], stored: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The arrays of a checkpoint among those of a run, finished at its limit of steps or not."""
    return {name: x for name, x in stored.items() if name.startswith(("state/", "history/"))}


def _run(
    problem: Problem, params: Params, command: Descend, options: dict[str, Any], handle
) -> descent.Run:
    """Descend with a progress bar, from the last checkpoint if the folder holds one."""
    checkpoint = None if handle is None else record.load_checkpoint(handle)
    resume = None if checkpoint is None else checkpoint[0]
    saved = time.monotonic()
    columns = (
        TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"),
        TimeElapsedColumn(), TimeRemainingColumn(), TextColumn("{task.fields[state]}"),
    )  # fmt: skip
    with watched(*columns) as progress:
        task = progress.add_task(command.optimizer, total=options["steps"], state="compiling")

        def on_segment(run: descent.Run) -> None:
            nonlocal saved
            last = _last(run)
            state = f"f = {last['loss']:.6g}, gap = {last['gap']:.1e}"
            progress.update(task, completed=run.steps, state=state)
            if handle is not None and time.monotonic() - saved >= command.checkpoint_seconds:
                record.save_checkpoint(handle, descent.pack(run), {"steps": run.steps})
                saved = time.monotonic()

        return descent.descend(
            problem, params, command.optimizer, **options, on_segment=on_segment, resume=resume
        )


def _last(run: descent.Run) -> dict[str, float]:
    """The last row of the history, which begins with the start."""
    return {name: float(x[-1]) for name, x in run.history.items()}


def _results(problem: Problem, run: descent.Run) -> dict[str, Any]:
    proof, last = certify(problem, run.params), _last(run)
    shown = ("nc1", "nc2", "nc3", "nc4", "accuracy")
    return {
        "status": run.status,
        "steps": run.steps,
        "value": proof.value,
        "lower_bound": proof.lower_bound,
        "gap": proof.gap,
        "grad_norm": proof.grad_norm,
    } | {name: x for name, x in last.items() if name in shown or name not in HISTORY}


def _show(results: dict[str, Any], title: str, as_json: bool) -> None:
    """Print the results; in a table with a sentence about how the run ended."""
    name = results["status"]
    told = f"{name}: {descent.Status[name].sentence}"
    if name == STOPPED:
        # Below d = K−1 the gap need not close: more steps would be taken in vain.
        arrived = isinstance(results["grad_norm"], float) and results["grad_norm"] < ARRIVED
        told += "; ∇f is 0 to rounding, end by --grad-tol" if arrived else "; give more --steps"
    show(title, results | ({} if as_json else {"status": told}), tuple(results), as_json)


def _report_run(path: Path, title: str, as_json: bool) -> int:
    results = stored.results(record.load_run(path).manifest, f"{path / 'manifest.json'}")
    _show(results, title, as_json)
    return FAILED if results["status"] == "diverged" else 0
