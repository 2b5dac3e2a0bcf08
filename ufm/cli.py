"""The command `ufm`: closed forms, descent, certificates and collapse from the shell."""

import contextlib
import json
import sys
import time
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from ufm import descent, metrics, record, theory
from ufm.certificate import certify
from ufm.problem import Params, Problem, init_params

FAILED, INTERRUPTED, REFUSED = 1, 130, 2


@dataclass(frozen=True)
class Model:
    """The unconstrained feature model: sizes and decays."""

    K: int = 10
    """number of classes, at least 2"""
    d: int = 20
    """width of the features"""
    n: tuple[int, ...] = (100,)
    """samples per class: one number for all, or K numbers, one a class"""
    lam_W: float = 5e-4
    """λ_W, decay of the classifier"""
    lam_H: float = 5e-4
    """λ_H, decay of the features"""
    lam_b: float = 5e-4
    """λ_b, decay of the bias"""
    bias: bool = True
    """whether the model has a bias"""

    def problem(self) -> Problem:
        """Build the `Problem`, which refuses what makes no sense."""
        n = self.n[0] if len(self.n) == 1 else self.n
        return Problem(self.K, self.d, n, self.lam_W, self.lam_H, self.lam_b, self.bias)


@dataclass(frozen=True)
class Theory:
    """Print the closed form of the global minimum (Zhu et al. 2021, theorem 3.1).

    Needs balanced classes, d >= K-1 and positive decays.
    Example: ufm theory --K 10 --d 512 --n 5000 --lam-W 5e-4 --lam-H 1e-7
    """

    model: Annotated[Model, tyro.conf.OmitArgPrefixes] = field(default_factory=Model)
    json: bool = False
    """print JSON for machines instead of a table"""


@dataclass(frozen=True)
class Descend:
    """Minimise the model from a random start, recording loss, gap and NC1-NC4.

    With --out the run is kept on disk; killed or interrupted, the same command goes on where it
    stopped and ends with the same bits. Exit status: 0 done, 1 diverged, 2 refused, 130
    interrupted. Example: ufm descend --optimizer lbfgs --gap-tol 1e-8 --out runs/first
    """

    model: Annotated[Model, tyro.conf.OmitArgPrefixes] = field(default_factory=Model)
    optimizer: Literal["gd", "heavy_ball", "nesterov", "sgd", "adam", "lbfgs"] = "lbfgs"
    """full batch: gd, heavy_ball, nesterov, lbfgs, adam; minibatches: sgd, adam"""
    steps: int = 10_000
    """most steps to take"""
    learning_rate: float | Literal["auto"] | None = None
    """a number, or auto: a step that provably does not diverge; default: the optimiser's own"""
    momentum: float | None = None
    """momentum of heavy_ball, nesterov and sgd; default 0.9"""
    batch_size: int | None = None
    """minibatch size, for sgd and adam"""
    scale: float = 0.1
    """standard deviation of the random start"""
    seed: int = 0
    """seed of the start and of the minibatches"""
    record_every: int = 100
    """steps between two rows of the history; tolerances are tested there"""
    grad_tol: float | None = None
    """stop when the gradient norm is below this"""
    gap_tol: float | None = 1e-8
    """stop when the certified gap to the global minimum is below this"""
    precision: Literal["float64", "float32"] = "float64"
    """precision of the iterates; certificates are always float64"""
    out: Path | None = None
    """folder that keeps the run: manifest.json, arrays.npz"""
    checkpoint_seconds: float = 10.0
    """least time between two checkpoints in that folder"""
    json: bool = False
    """print JSON for machines instead of a table"""


@dataclass(frozen=True)
class Certify:
    """Bound how far a run's last point is from the global minimum, rigorously.

    Example: ufm certify runs/first
    """

    run: tyro.conf.Positional[Path]
    """folder of a run, as `ufm descend --out` leaves it"""
    json: bool = False
    """print JSON for machines instead of a table"""


@dataclass(frozen=True)
class Measure:
    """Measure NC1-NC4 on features of any network, from a .npz file.

    The file holds W (K, d), H (d, N) with samples as columns, labels (N,) and, if there is one,
    b (K,). From PyTorch: np.savez("features.npz", W=fc.weight.detach().numpy(),
    b=fc.bias.detach().numpy(), H=features.T, labels=labels). Example: ufm measure features.npz
    """

    features: tyro.conf.Positional[Path]
    """the .npz file"""
    json: bool = False
    """print JSON for machines instead of a table"""


Command = (
    Annotated[Descend, tyro.conf.subcommand("descend")]
    | Annotated[Theory, tyro.conf.subcommand("theory")]
    | Annotated[Certify, tyro.conf.subcommand("certify")]
    | Annotated[Measure, tyro.conf.subcommand("measure")]
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    command = tyro.cli(
        Command,
        prog="ufm",
        description="Simulator for the landscape of the unconstrained feature model of neural "
        "collapse. Start with: ufm theory, ufm descend.",
        args=arguments,
    )
    jax.config.update("jax_enable_x64", True)
    try:
        return _act(command)
    except (ValueError, TypeError, OSError) as error:
        print(f"ufm: {error}", file=sys.stderr)
        return REFUSED
    except KeyboardInterrupt:
        print("ufm: interrupted", file=sys.stderr)
        return INTERRUPTED


def _act(command: Theory | Descend | Certify | Measure) -> int:
    match command:
        case Theory():
            return _theory(command)
        case Descend():
            return _descend(command)
        case Certify():
            return _certify(command)
        case Measure():
            return _measure(command)


def _theory(command: Theory) -> int:
    problem = command.model.problem()
    norms = theory.norms(problem)
    rows = {
        "collapsed to the origin (K² n λ_W λ_H ≥ 1)": theory.is_collapsed(problem),
        "K² n λ_W λ_H": problem.K**2 * problem.N / problem.K * problem.lam_W * problem.lam_H,
        "global value f* (nats)": theory.global_value(problem),
        "margin t": theory.margin(problem),
        "probability of each wrong class c": theory.wrong_probability(problem),
        "‖W‖": norms.W,
        "‖H‖": norms.H,
    }
    names = ("is_collapsed", "threshold", "value", "margin", "wrong_probability", "W", "H")
    _show("Global minimum in closed form", rows, names, command.json)
    return 0


def _descend(command: Descend) -> int:
    problem = command.model.problem()
    params_key, batch_key = jax.random.split(jax.random.key(command.seed))
    dtype = jnp.dtype(command.precision)
    options: dict[str, Any] = {
        name: getattr(command, name)
        for name in (
            "steps", "learning_rate", "momentum", "batch_size", "record_every", "grad_tol",
            "gap_tol",
        )
    }  # fmt: skip
    options["key"] = None if command.batch_size is None else batch_key
    params = init_params(params_key, problem, command.scale, dtype)
    descent.check(problem, params, command.optimizer, **options)
    with _kept_run(command) as handle:
        if handle is not None and handle.status == "complete":
            print(f"ufm: {handle.path} already holds this finished run", file=sys.stderr)
            return _report_run(handle.path, command.json)
        run = _run(problem, params, command, options, handle)
        results = _results(problem, run)
        if handle is not None:
            arrays = dict(zip("WHb", map(np.asarray, run.params), strict=True))
            arrays |= {f"history/{name}": x for name, x in run.history.items()}
            record.close_run(handle, arrays, results)
    _show("Descent", results, tuple(results), command.json)
    return FAILED if run.status == "diverged" else 0


@contextlib.contextmanager
def _kept_run(command: Descend) -> Iterator[record.RunHandle | None]:
    if command.out is None:
        yield None
        return
    config = asdict(command)
    for name in ("out", "json", "checkpoint_seconds", "seed", "precision"):
        del config[name]
    with record.open_run(
        command.out, "descend", config, seed=command.seed, precision=command.precision
    ) as handle:
        yield handle


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
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(command.optimizer, total=options["steps"], state="compiling")

        def on_segment(run: descent.Run) -> None:
            nonlocal saved
            loss, gap = run.history["loss"][-1], run.history["gap"][-1]
            progress.update(task, completed=run.steps, state=f"f = {loss:.6g}, gap = {gap:.1e}")
            if handle is not None and time.monotonic() - saved >= command.checkpoint_seconds:
                record.save_checkpoint(handle, descent.pack(run), {"steps": run.steps})
                saved = time.monotonic()

        return descent.descend(
            problem, params, command.optimizer, **options, on_segment=on_segment, resume=resume
        )


def _results(problem: Problem, run: descent.Run) -> dict[str, Any]:
    certificate = certify(problem, run.params)
    last = {name: float(x[-1]) for name, x in run.history.items()}
    results = {
        "status": run.status,
        "steps": run.steps,
        "value": certificate.value,
        "lower_bound": certificate.lower_bound,
        "gap": certificate.gap,
        "grad_norm": certificate.grad_norm,
    }
    return results | {name: last[name] for name in ("nc1", "nc2", "nc3", "nc4", "accuracy")}


def _report_run(path: Path, as_json: bool) -> int:
    results = record.load_run(path).manifest["results"]
    _show("Descent", results, tuple(results), as_json)
    return FAILED if results["status"] == "diverged" else 0


def _certify(command: Certify) -> int:
    stored = record.load_run(command.run)
    if stored.manifest["kind"] != "descend" or not {"W", "H", "b"} <= stored.arrays.keys():
        raise ValueError(
            f"got {command.run}, a run of kind {stored.manifest['kind']!r} with status "
            f"{stored.manifest['status']!r}; allowed: a finished run of `ufm descend --out`. "
            "If it was interrupted, give the command that began it again"
        )
    model = _stored_model(stored)
    params = Params(*(jnp.asarray(stored.arrays[name]) for name in "WHb"))
    certificate = certify(model.problem(), params)._asdict()
    names = {
        "value f (nats)": "value",
        "lower bound on f*": "lower_bound",
        "gap ≥ f − f*": "gap",
        "‖∇f‖": "grad_norm",
        "‖G‖₂/μ (≤ 1 at a global minimum)": "spectral_ratio",
        "resolution of the gap": "resolution",
    }
    rows = {label: certificate[name] for label, name in names.items()}
    _show(f"Certificate of {command.run}", rows, tuple(names.values()), command.json)
    return 0


def _stored_model(stored: record.StoredRun) -> Model:
    fields = stored.manifest["config"]["model"]
    return Model(**fields | {"n": tuple(fields["n"])})


def _measure(command: Measure) -> int:
    arrays = _features(command.features)
    collapse = metrics.collapse(
        arrays["W"], arrays["H"], arrays.get("b", np.zeros(len(arrays["W"]))), arrays["labels"]
    )
    rows = collapse._asdict()
    _show(f"Neural collapse of {command.features}", rows, tuple(rows), command.json)
    return 0


def _features(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except FileNotFoundError:
        raise ValueError(f"got {path}, which does not exist; allowed: an .npz file") from None
    except (ValueError, zipfile.BadZipFile, EOFError, AttributeError, TypeError) as error:
        raise ValueError(
            f"got {path}, which is no .npz file of plain arrays ({error}); write it with "
            "np.savez(path, W=…, H=…, b=…, labels=…)"
        ) from None
    missing = {"W", "H", "labels"} - arrays.keys()
    if missing:
        raise ValueError(
            f"got {path} with arrays {sorted(arrays)}; missing {sorted(missing)}. Needed: "
            "W (K, d), H (d, N), labels (N,), and b (K,) if there is a bias"
        )
    return arrays


def _show(title: str, rows: dict[str, Any], names: Sequence[str], as_json: bool) -> None:
    """Print a two-column table, or one JSON object under the short names."""
    if as_json:
        values = (x.item() if isinstance(x, np.generic) else x for x in rows.values())
        print(json.dumps(dict(zip(names, values, strict=True)), indent=2))
        return
    table = Table(title=title, show_header=False, title_justify="left")
    for label, x in rows.items():
        table.add_row(label, f"{x:.10g}" if isinstance(x, float) else str(x))
    Console().print(table)


if __name__ == "__main__":
    sys.exit(main())
