"""`ufm measure`: NC1–NC4 and related measures of the features of any network."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import tyro

from ufm import metrics, theory
from ufm.certificate import certify
from ufm.check import Refused
from ufm.commands.files import arrays_of
from ufm.commands.shared import named, show
from ufm.metrics import frames, streaming
from ufm.metrics.features import columns, fit, numbers
from ufm.model import layers
from ufm.model.problem import Params, Problem

# The labels of fields in a table; fields without a label are shown by their names.
LABELS = {
    "nc1": "nc1: tr(Σ_W Σ_B⁺)/K",
    "nc1_trace_ratio": "nc1_trace_ratio: tr Σ_W / tr Σ_B",
    "nc1_cdnv": "nc1_cdnv: variances over distances of pairs",
    "nc2": "nc2: WWᵀ to a simplex",
    "nc2_centred": "nc2_centred: W less its mean row",
    "nc2_means": "nc2_means: class means to a simplex",
    "nc3": "nc3: W times class means to a simplex",
    "nc3_duality": "nc3_duality: W to class means",
    "nc4": "nc4: share where argmax is not the nearest mean",
    "nc4_mean_logit": "nc4_mean_logit: ‖Wμ_G + b‖",
    "within": "within: share of the variance inside classes",
    "value": "value f at these features (nats)",
    "gap": "gap ≥ f − f*",
    "lam_H": "λ_H (by balance, unless given)",
    "norm_W": "‖W‖",
    "predicted_norm_W": "‖W‖ at the global minimum",
    "margin": "mean margin z_y − max of the others",
    "predicted_margin": "margin at the global minimum",
}


class _Part(NamedTuple):
    """Features (d, N) of one file, and their labels."""

    H: Any
    labels: np.ndarray


@dataclass(frozen=True)
class Measure:
    """Measure NC1-NC4 on features of any network, from .npz or .safetensors files.

    A file holds W (K, d), features (N, d) with samples as rows, labels (N,) and, if there is one,
    b (K,). H (d, N), samples as columns, may replace features. Labels 0 … K−1 are rows of W;
    others need --classes. From PyTorch: np.savez("features.npz", W=fc.weight.detach().numpy(),
    b=fc.bias.detach().numpy(), features=features.numpy(), labels=labels.numpy()).

    Several files are shards of one set of features: each must hold features and labels, and the
    first one W and b as well. At most two of them are in memory at a time.

    With --lam-W the command also compares with the unconstrained feature model of that weight
    decay: the gap to its global minimum, and the norm of W and the margin there. All features must
    then fit in memory.

    Example: ufm measure features.npz --ignore -100
    """

    files: tyro.conf.Positional[tuple[Path, ...]]
    """the .npz or .safetensors file, or files"""
    classes: tuple[str, ...] = ()
    """the K labels in the order of the rows of W, if they are not 0 … K−1"""
    ignore: tuple[str, ...] = ()
    """labels of samples to leave out"""
    mean: Literal["class", "sample"] = "class"
    """the centre of the class means: the mean of the class means, or of all samples"""
    missing: Literal["refuse", "skip"] = "refuse"
    """treatment of classes without samples; skip: NC1 and NC4 of the other classes"""
    about: tuple[Path, ...] = ()
    """files of training features, whose class means replace those of the measured features"""
    generalised: bool = False
    """also measure geometry beyond the simplex: uniformity, margins, orthogonal frames"""
    lam_W: float | None = None
    """λ_W: compare with the model; the `weight_decay` of PyTorch's SGD"""
    lam_H: float | None = None
    """λ_H; by default λ_W‖W‖²/‖H‖², as at critical points"""
    lam_b: float = 0.0
    """λ_b"""
    features: Literal["free", "nonnegative"] = "free"
    """constraint on the features of that model; nonnegative: behind a ReLU"""
    json: bool = False
    """print JSON for machines instead of a table; infinite and unknown numbers as null"""

    def act(self) -> int:
        """Print the metrics of the files."""
        if not self.files:
            raise Refused("got no file; allowed: ufm measure features.npz, or several files")
        first = arrays_of(self.files[0], ("labels",))
        W, b = numbers("W", first["W"]), first.get("b")
        seen = self._seen(W, b, first, self._means(W) if self.about else None)
        rows = seen.collapse()._asdict() | _scalars(seen.detail(), W)
        if self.generalised:
            rows |= metrics.generalised(W, seen.class_means)._asdict()
        if self.lam_W is not None:
            rows |= self._model(W, b, first)
        names = tuple(rows)
        if not self.json:
            rows = {LABELS.get(name, name): _short(x) for name, x in rows.items()}
        title = "Neural collapse of " + ", ".join(map(str, self.files))
        show(title, rows, names, self.json)
        return 0

    def _seen(self, W, b, first: dict[str, np.ndarray], means) -> metrics.Accumulator:
        """The measures of all features, in two passes."""
        if len(self.files) == 1:
            (part,) = self._parts(W, first)
            options = named(part.labels, self.classes, self.ignore)
            every = means is None and self.missing == "refuse"
            chosen = fit(W, part.H, _bias(b), part.labels, **options, every=every)
            return streaming.whole(
                W, part.H, b, chosen, self.mean, means, self.missing, options.get("classes")
            )
        options = named(first["labels"], self.classes, self.ignore)
        seen = metrics.Accumulator(
            W, b, mean=self.mean, means=means, missing=self.missing, passes=2, **options
        )
        for step in (seen.add,) if means is not None else (seen.add, seen.again):
            for part in self._parts(W, first):
                step(part.H.T, part.labels)
        return seen

    def _parts(self, W, first: dict[str, np.ndarray]) -> Iterator[_Part]:
        """The features and labels of each file."""
        for path in self.files:
            arrays = first
            if path != self.files[0]:
                arrays = arrays_of(path, ("labels",), shard=True)
                others = [x for x in ("W", "b") if x in arrays and not _same(x, arrays, first)]
                if others:
                    raise Refused(
                        f"got {path} with another {others[0]} than {self.files[0]}; allowed: "
                        "shards of one network, W and b in the first or the same in all"
                    )
            H = columns(W, arrays.get("H"), arrays.get("features"))
            yield _Part(H, arrays["labels"])

    def _means(self, W) -> np.ndarray:
        """Class means of the training features."""
        seen = None
        for path in self.about:
            arrays = arrays_of(path, ("labels",), shard=True)
            if seen is None:
                options = named(arrays["labels"], self.classes, self.ignore)
                seen = metrics.Accumulator(W, passes=2, **options)
            H = columns(W, arrays.get("H"), arrays.get("features"))
            seen.add(H.T, arrays["labels"])
        assert seen is not None
        return seen.class_means

    def _model(self, W, b, first: dict[str, np.ndarray]) -> dict[str, Any]:
        """Rows that compare the features with the model of these decays."""
        parts = list(self._parts(W, first))
        H = parts[0].H if len(parts) == 1 else np.concatenate([x.H for x in parts], axis=1)
        labels = np.concatenate([part.labels for part in parts])
        options = named(labels, self.classes, self.ignore)
        problem, params = Problem.from_features(
            W, H, b, labels, self.lam_W, lam_H=self.lam_H, lam_b=self.lam_b, **options
        )
        problem = replace(problem, features=self.features)
        proof = certify(problem, params)
        return {
            "value": proof.value,
            "gap": proof.gap,
            "lam_H": problem.lam_H,
            "norm_W": float(np.linalg.norm(params.W)),
            "margin": _margin(problem, params),
        } | _predicted(problem)


def _same(name: str, one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:
    return name in other and np.array_equal(one[name], other[name])


def _predicted(problem: Problem) -> dict[str, Any]:
    """‖W‖ and the margin at the global minimum, if there is a closed form."""
    try:
        size, margin = theory.norms(problem).W, _mean_margin(problem)
    except Refused as refused:
        return {"predicted_norm_W": None, "predicted_margin": None, "closed_form": str(refused)}
    return {"predicted_norm_W": float(size), "predicted_margin": float(margin)}


def _mean_margin(problem: Problem) -> float:
    """The margin at the minimum; where H ≥ 0, the mean over samples, as classes have their own."""
    if layers.is_free(problem):
        return theory.margin(problem)
    return float(theory.margins(problem) @ problem.counts / problem.N)


def _margin(problem: Problem, params: Params) -> float:
    """Mean over the samples of z_y − max_{j≠y} z_j."""
    W, H, b = params
    total, labels = 0.0, problem.labels
    for part in frames.slices(problem.N, max(problem.K, problem.d)):
        Z = H[:, part].T @ W.T + b
        at = np.arange(len(Z)), labels[part]
        right = Z[at]
        Z[at] = -np.inf
        total += float((right - Z.max(axis=1)).sum())
    return total / problem.N


def _scalars(detail: metrics.Detail, W) -> dict[str, Any]:
    """The scalars of `Detail`, and the sizes."""
    rows: dict[str, Any] = {"K": W.shape[0], "d": W.shape[1], "N": int(detail.counts.sum())}
    names = "accuracy", "nearest_centre", "within", "cosine_std_W", "cosine_std_means"
    rows |= {name: getattr(detail, name) for name in names}
    if detail.missing:
        rows["missing"] = ", ".join(map(str, detail.missing))
    return rows


def _bias(b) -> Any:
    return None if b is None else numbers("b", b)


def _short(x: Any) -> str:
    if x is None:
        return "unknown"
    return f"{x:.6g}" if isinstance(x, float) else str(x)
