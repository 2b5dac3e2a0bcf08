"""`ufm probe`: what kind of point a point is, by its Hessian."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import tyro
from rich.progress import SpinnerColumn, TextColumn, TimeElapsedColumn

import ufm
from ufm import check, hessian
from ufm.commands.files import FORMATS
from ufm.commands.progress import watched
from ufm.commands.shared import Compiling, check_figure, show, stored_point
from ufm.hessian import ends
from ufm.hessian.decision import Verdict, judged
from ufm.hessian.reduction import Core, reduced
from ufm.hessian.signs import counted
from ufm.model import layers
from ufm.model.evaluation import Evaluated, evaluate
from ufm.model.problem import Params, Problem
from ufm.runs import values
from ufm.theory.spectra import orbit_dimension

End = Literal["smallest", "largest"]
ENDS: tuple[End, ...] = ("smallest", "largest")
ROWS = 2000  # of a core, up to which its smallest eigenvalue off the orbit is shown: seconds
MARK = "drawn by ufm probe"  # in the metadata of a figure, which may then be replaced
LABELS = {
    "polish": "polish",
    "verdict": "verdict",
    "reason": "because",
    "value": "value f (nats)",
    "gap": "gap ≥ f − f*",
    "grad_norm": "‖∇f‖",
    "spectral_ratio": "‖G‖₂/μ (≤ 1 at a global minimum)",
    "index": "index: eigenvalues below −τ",
    "nullity": "nullity: eigenvalues within τ of 0",
    "orbit_dimension": "dimension of the symmetry orbit",
    "rank": "rank of [Wᵀ, H]",
    "positive": "eigenvalues above τ",
    "tolerance": "τ",
    "smallest_off_orbit": "smallest eigenvalue off the orbit",
    "curvature": "least curvature off the symmetries",
    "note": "note",
}


@dataclass(frozen=True)
class Probe(Compiling):
    """Classify a point: verdict, gap, index, nullity, extreme eigenpairs of the Hessian.

    The smallest eigenvalue off the symmetry orbit is shown up to 2,000 variables of class means.

    The point is the end of a run, or an .npz or .safetensors file with W (K, d), features (N, d) or
    H (d, N), b (K,) if there is a bias, lam_W, lam_H, lam_b, and labels (N,), which are rows of W
    or need --classes; without labels, n (samples per class: one number, or K) and samples grouped
    by class. From Python, for any features: problem, params = ufm.Problem.from_features(W, H, b,
    labels, lam_W); np.savez("point.npz", **params._asdict(), n=problem.n, lam_W=problem.lam_W,
    lam_H=problem.lam_H, lam_b=problem.lam_b, bias=problem.bias). Everything is computed in float64.
    A run that stopped at a tolerance is near a critical point, not at one: --polish moves the point
    there first.

    For nonnegative features the eigenvalues are of class means, over the entries that are not 0.

    Example: ufm probe runs/first --polish --density
    """

    point: tyro.conf.Positional[Path]
    """folder of a run, as `ufm descend --out` leaves it, or an .npz or .safetensors file"""
    classes: tuple[str, ...] = ()
    """for a file: its K labels in the order of the rows of W, if they are not 0 … K−1"""
    ignore: tuple[str, ...] = ()
    """for a file: the labels of samples to leave out"""
    loss: str = ""
    """for a file: the loss, as `ufm descend --loss` takes it; a run stores its own"""
    features: Literal["", "free", "nonnegative", "sphere"] = ""
    """for a file: free, nonnegative (H behind a ReLU), sphere (unit rows and features)"""
    polish: bool = False
    """first move to a critical point nearby, of any index, by Newton's method"""
    k: int = 3
    """eigenpairs to compute at each end of the spectrum"""
    density: bool = False
    """draw the spectral density into POINT_density.pdf and .png beside the point"""
    figure: Path | None = None
    """path of that figure instead, without .pdf"""
    json: bool = False
    """print JSON for machines instead of tables"""

    def act(self) -> int:
        """Print the evidence; draw the density if asked."""
        options = self.classes, self.ignore, self.loss, self.features
        problem, params = stored_point(self.point, *options)
        check.integer("k", self.k, 1, problem.size, f"this Hessian has {problem.size} eigenpairs")
        if self.density or self.figure:
            check_figure(self._stem(), MARK, "a figure of ufm probe")
        columns = SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn()
        with watched(*columns) as progress:
            task = progress.add_task("")
            evidence, pairs, drawn = self._probed(
                problem, params, lambda doing: progress.update(task, description=doing)
            )
        if self.json:
            figures = {"figures": [str(path) for path in drawn]} if drawn else {}
            print(values.text(evidence | pairs | figures))
            return 0
        rows = {LABELS[name]: value for name, value in evidence.items()} | _told(pairs)
        if not self.polish and evidence["verdict"] != "global minimiser":
            rows.setdefault(LABELS["note"], "--polish first moves to the critical point nearby")
        show(f"Probe of {self.point}", rows, tuple(rows), False)
        for path in drawn:
            print(f"drew {path}")
        return 0

    def _probed(
        self, problem: Problem, params: Params, say: Callable[[str], None]
    ) -> tuple[dict[str, Any], dict[End, list[dict[str, Any]]], list[Path]]:
        """(evidence, eigenpairs at both ends, figures); `say` is called with each stage."""
        polished: dict[str, Any] = {}
        if self.polish:
            say("Newton's method to a critical point")
            found = ufm.solve(problem, params, descend=False)
            params, polished = found.params, {"polish": found.status}
        say("verdict, index and nullity")
        at = evaluate(problem, params)
        evidence = polished | _evidence(problem, at)
        pairs: dict[End, list[dict[str, Any]]] = {}
        if layers.is_free(problem):
            say(f"{self.k} smallest eigenvalues, {self.k} largest")
            pairs = _pairs(at, params, self.k)
        drawn = []
        if self.density or self.figure:
            say("spectral density")
            drawn = self._draw(problem, params)
        return evidence, pairs, drawn

    def _stem(self) -> Path:
        """Path of the figures, without suffix."""
        name = self.point.stem if self.point.suffix in FORMATS else self.point.name
        return self.figure or self.point.with_name(f"{name}_density")

    def _draw(self, problem: Problem, params: Params) -> list[Path]:
        # matplotlib takes most of a second to import; few commands need it.
        from ufm import plots

        measured = hessian.density(problem, params, jax.random.key(0))
        with plots.style():
            canvas, axes = plots.figure("icml", 2.2)
            ax = axes[0, 0]
            plots.band(ax, measured.grid, measured.density, 2 * measured.standard_error)
            top = float(np.max(measured.density))
            ax.set(yscale="log", ylim=(1e-6 * top, 2 * top))
            smooth = f"smoothed by {float(measured.width):.1g}"
            ax.set(xlabel=rf"eigenvalue of $\nabla^2 f$, {smooth}", ylabel="density")
            decays = rf"$\lambda_W={problem.lam_W:g}$, $\lambda_H={problem.lam_H:g}$"
            ax.set_title(f"$K={problem.K}$, $d={problem.d}$, $N={problem.N}$, {decays}")
            return plots.save(canvas, self._stem(), {"Author": MARK})


def _evidence(problem: Problem, at: Evaluated) -> dict[str, Any]:
    """Verdict and counts, under the names that JSON prints."""
    verdict, certificate, critical_core = judged(at)
    shared = {
        "verdict": verdict.kind,
        "reason": verdict.reason,
        "value": certificate.value,
        "gap": verdict.gap,
        "grad_norm": verdict.residual,
        "spectral_ratio": verdict.spectral_ratio,
    }
    if not layers.is_free(problem):
        return shared | _on_the_face(verdict)
    core = reduced(at) if critical_core is None else critical_core
    counts = verdict.inertia or counted(problem, core)
    off = _along_the_orbit(core, verdict.residual)
    if critical_core and not verdict.inertia and off > counts.tolerance:
        counts = counted(problem, core, tolerance=counts.tolerance + off)
    rank = core.W.shape[1]
    return (
        shared
        | {
            "index": counts.negative,
            "nullity": counts.zero,
            "orbit_dimension": orbit_dimension(problem, rank),
            "rank": rank,
            "positive": counts.positive,
            "tolerance": counts.tolerance,
        }
        | (_off_the_orbit(problem, core) | ({"note": counts.note} if counts.note else {}))
    )


def _on_the_face(verdict: Verdict) -> dict[str, Any]:
    """Counts of eigenvalues on the variables off the zeros of H; empty if not critical."""
    counts = verdict.inertia
    if counts is None:
        return {}
    names = ("negative", "index"), ("zero", "nullity"), ("positive", "positive")
    found: dict[str, Any] = {name: getattr(counts, field) for field, name in names}
    return found | {"tolerance": counts.tolerance, "curvature": verdict.curvature}


def _off_the_orbit(problem: Problem, core: Core) -> dict[str, float]:
    """The smallest eigenvalue off the symmetry orbit, if it takes seconds at most."""
    if ends.size_of(core) > ROWS:
        return {}
    return {"smallest_off_orbit": ends.of_core(problem, core, orbit=True)}


def _along_the_orbit(core: Core, residual: float) -> float:
    """How far from 0 the eigenvalues of the orbit may be at a point with this residual.

    ∇²f (W Aᵀ, A H) = −(∇_W Aᵀ, A ∇_H) for antisymmetric A, and the tangent is 0 or at least as long
    as the smallest positive singular value of [Wᵀ, H] times ‖A‖/√2.
    """
    columns = np.concatenate([core.W.T, core.H * np.sqrt(core.merged)], axis=1)
    sizes = np.linalg.svd(columns, compute_uv=False)
    sizes = sizes[sizes > 0]
    return 2 * residual / float(sizes[-1]) if len(sizes) else 0.0


def _pairs(at: Evaluated, params: Params, k: int) -> dict[End, list[dict[str, Any]]]:
    """Eigenvalues at both ends, outermost first, with residuals ‖∇²f v − λv‖."""
    core = reduced(at)
    if ends.size_of(core) <= ends.DENSE:
        found = [_listed(*x, np.ones(k, bool)) for x in ends.outermost(core, k)]
    else:
        extremes = (hessian.extreme(at.problem, params, k=k, which=end) for end in ENDS)
        found = [_listed(x.values, x.residuals, x.converged) for x in extremes]
    return dict(zip(ENDS, found, strict=True))


def _listed(values: Any, residuals: Any, converged: Any) -> list[dict[str, Any]]:
    """Eigenpairs as JSON prints them."""
    lists = (np.asarray(x).tolist() for x in (values, residuals, converged))
    names = "value", "residual", "converged"
    return [dict(zip(names, pair, strict=True)) for pair in zip(*lists, strict=True)]


def _told(pairs: Mapping[End, list[dict[str, Any]]]) -> dict[str, str]:
    """The eigenpairs as rows of the table."""
    rows = {}
    for end, found in pairs.items():
        for i, pair in enumerate(found, start=1):
            note = "" if pair["converged"] else ", not converged"
            text = f"{pair['value']:.10g} (residual {pair['residual']:.1e}{note})"
            rows[f"{end} eigenvalue, {i} of {len(found)}"] = text
    return rows
