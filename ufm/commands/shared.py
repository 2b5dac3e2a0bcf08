"""What the commands share: exit statuses, the flags of a model, stored input, printing."""

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

from ufm.check import Refused, flag, shown
from ufm.commands.files import arrays_of, is_file, matrix_of
from ufm.metrics.features import columns, numbers
from ufm.model.points import check_params
from ufm.model.problem import DECAYS, Params, Problem
from ufm.report import stored
from ufm.runs import record, storage, values

FAILED = 1
# For tables with many columns: narrow, so that a row fits a terminal of 80 columns.
LOOK: dict[str, Any] = {"box": None, "padding": (0, 1, 0, 0), "title_justify": "left"}
# Files by which the folders of other commands are known, and what reads these folders.
OTHERS = {
    "atlas.json": "an atlas of `ufm census`; read it with `ufm report`, or extend it with "
    "`ufm census --out`",
    "verify.json": "what `ufm verify` found; read it with `ufm report`, or in its verify.md",
}


@dataclass(frozen=True, kw_only=True)
class Compiling:
    """The flag of all commands that compile programs."""

    cache: bool = True
    """keep compiled programs between processes, in the user's cache folder"""


@dataclass(frozen=True)
class ModelFlags:
    """The unconstrained feature model: sizes and decays."""

    K: int = 10
    """number of classes, at least 2"""
    d: int = 20
    """width of the features"""
    n: tuple[int, ...] = (100,)
    """samples per class: one number for all, or K numbers, one a class"""
    lam: float = 5e-4
    """λ, the value of each decay below that is not given"""
    lam_W: float | None = None
    """λ_W, decay of the classifier; by default λ"""
    lam_H: float | None = None
    """λ_H, decay of the features; by default λ"""
    lam_b: float | None = None
    """λ_b, decay of the bias; by default λ"""
    bias: bool = True
    """whether the model has a bias"""
    loss: str = "CrossEntropy"
    """loss of the logits"""
    weights: tuple[float, ...] = ()
    """weights of the classes in the loss, K numbers; default: equal weights"""
    decay_weights: tuple[float, ...] = ()
    """weights of the classes in the decay of H, K numbers; the layer-peeled model has 1/n_k"""
    targets: Path | None = None
    """target matrix (K, G) instead of labels: an .npy file, or text with K lines"""
    features: Literal["free", "nonnegative", "sphere"] = "free"
    """constraint on W and H; nonnegative: H as behind a ReLU, sphere: unit rows and features"""
    fixed: tuple[str, ...] = ()
    """W: fix the classifier at the W with which the run starts"""

    def config(self) -> dict[str, Any]:
        """The flags as a run folder stores them: newer ones only where they are not default."""
        later = {"loss": "CrossEntropy", "weights": (), "decay_weights": (), "targets": None}
        later |= {"features": "free", "fixed": ()}
        found = {name: x for name, x in self._fields().items() if x != later.get(name, self)}
        if self.targets is not None:
            found["targets"] = self.problem().targets.tolist()
        return found

    def _fields(self) -> dict[str, Any]:
        """The fields of a problem, with a value for each decay."""
        found = asdict(self)
        lam = found.pop("lam")
        return found | {name: lam if found[name] is None else found[name] for name in DECAYS}

    def problem(self) -> Problem:
        """The `Problem` of these flags.

        Raises:
            Refused: values that do not make one.
        """
        n = self.n[0] if len(self.n) == 1 else self.n
        weights = {name: getattr(self, name) or None for name in ("weights", "decay_weights")}
        targets = None if self.targets is None else matrix_of(self.targets)
        return Problem(**self._fields() | {"n": n, "targets": targets} | weights)


def stored_point(
    path: Path,
    classes: Sequence[str] = (),
    ignore: Sequence[str] = (),
    loss: str = "",
    features: str = "",
) -> tuple[Problem, Params]:
    """The problem and the last point of a finished run, or those of a file.

    A file holds W (K, d), features (N, d) or H (d, N), b (K,) if there is a bias, lam_W, lam_H,
    lam_b, and either labels (N,) or n with samples grouped by class.

    Args:
        path: folder of a run, or an .npz or a .safetensors file.
        classes, ignore: words of the command line, for the labels of a file.
        loss: likewise, the loss of the point of a file; "" takes cross-entropy.
        features: likewise, the constraint on its features; "" takes free ones.

    Raises:
        Refused: no such run or file, a run that is not finished or of another kind, a file in
            which something is missing or does not fit.
    """
    if is_file(path):
        problem, params = _point_of_file(path, classes, ignore)
        given: dict[str, Any] = {
            name: x for name, x in (("loss", loss), ("features", features)) if x
        }
        return (replace(problem, **given) if given else problem), params
    for name, x in (("loss", loss), ("features", features)):
        if x:
            raise Refused(
                f"got --{name} {x} for {path}; allowed: for a file. A run holds its own {name}"
            )
    if classes or ignore:
        raise Refused(
            f"got --classes or --ignore for the run {path}; allowed: for a file with labels. The "
            "samples of a run are grouped by class"
        )
    refuse_others(path)
    found = record.load_run(path)
    kind = found.manifest["kind"]
    if kind != "descend" or not {"W", "H", "b"} <= found.arrays.keys():
        reader = "table" if kind == "sweep" else "report"
        hint = "If it was interrupted, give the command that began it again"
        raise Refused(
            f"got {path}, a run of kind {kind!r} with status {found.manifest['status']!r}; "
            "allowed: a finished run of `ufm descend --out`. "
            + (hint if kind == "descend" else f"Read this one with `ufm {reader}`")
        )
    where = f"{path / 'manifest.json'}"
    params = stored.point(found.manifest, found.arrays, where)
    return stored.problem(found.manifest, where), Params(*map(jnp.asarray, params))


def check_figure(stem: Path, mark: str, what: str) -> None:
    """Refuse a path for a figure unless its .pdf and .png are new or carry the mark.

    Args:
        stem: the path without suffix.
        mark: text in the metadata of the figures of a command.
        what: such a figure in words, for the message.

    Raises:
        Refused: a path without a name, or at which other files are.
    """
    if not stem.name:
        raise Refused(f"got --figure {stem}; allowed: a path that ends in a name")
    for kind in ("pdf", "png"):
        storage.check_replaceable(stem.with_name(f"{stem.name}.{kind}"), mark.encode(), what)


def refuse_others(path: Path) -> None:
    """Refuse the folder of another command.

    Raises:
        Refused: an atlas, or the folder of `ufm verify`, naming what reads it.
    """
    for name, told in OTHERS.items():
        if os.path.isfile(path / name):
            raise Refused(f"got {path}, which is {told}")


def _point_of_file(
    path: Path, classes: Sequence[str], ignore: Sequence[str]
) -> tuple[Problem, Params]:
    """The point of a file: its samples sorted by its labels, or grouped by class already."""
    arrays = arrays_of(path, ("lam_W", "lam_H"))
    bias = _has_bias(path, arrays)
    decays = {"lam_W": arrays["lam_W"], "lam_H": arrays["lam_H"]}
    decays |= {"lam_b": arrays["lam_b"]} if bias else {}
    for name, x in decays.items():
        if x.size != 1:
            raise Refused(f"got {path} with {name} of shape {x.shape}; allowed: one number")
    decays = {name: _entry(x) for name, x in decays.items()}
    if not bias:
        arrays.pop("b", None)
    if "labels" in arrays:
        problem, params = _labelled(path, arrays, decays, classes, ignore)
    elif classes or ignore:
        raise Refused(
            f"got --classes or --ignore, but {path} holds no labels; allowed: with labels"
        )
    else:
        problem, params = _grouped(path, arrays, decays)
    return problem, Params(*(jnp.asarray(x) for x in params))


def _entry(x: np.ndarray) -> Any:
    """The number of an array with a single entry; np.ascontiguousarray makes (1,) of shape ()."""
    return x.reshape(())[()] if x.size == 1 else x


def _has_bias(path: Path, arrays: dict[str, np.ndarray]) -> bool:
    """Whether the point has a bias: whether it says so, or else whether there is one."""
    bias = flag("bias", _entry(arrays["bias"])) if "bias" in arrays else "b" in arrays
    if bias and "b" not in arrays:
        raise Refused(f"got {path} with bias=True but no b; allowed: b (K,), or bias=False")
    if not bias and np.any(arrays.get("b", 0)):
        raise Refused(f"got {path} with bias=False but a b that is not 0; allowed: no b, or zeros")
    if bias and "lam_b" not in arrays:
        raise Refused(f"got {path} with b but missing ['lam_b']; allowed: one number, λ_b >= 0")
    return bias


def _labelled(
    path: Path,
    arrays: dict[str, np.ndarray],
    decays: dict[str, Any],
    classes: Sequence[str],
    ignore: Sequence[str],
) -> tuple[Problem, Params]:
    labels = arrays["labels"]
    options = decays | {"features": arrays.get("features")} | named(labels, classes, ignore)
    problem, params = Problem.from_features(
        arrays["W"], arrays.get("H"), arrays.get("b"), labels, **options
    )
    if "n" in arrays:
        told = Problem(problem.K, problem.d, _entry(arrays["n"]), 0, 0).n
        if told != problem.n:
            raise Refused(
                f"got {path} with n={shown(told)}, but its labels count n={shown(problem.n)}; "
                "allowed: the same, or no n"
            )
    return problem, params


def _grouped(
    path: Path, arrays: dict[str, np.ndarray], decays: dict[str, Any]
) -> tuple[Problem, Params]:
    if "n" not in arrays:
        raise Refused(
            f"got {path} without labels and without n; allowed: labels (N,), or else n, the "
            "samples of each class (one number, or K), with the samples grouped by class"
        )
    W = numbers("W", arrays["W"])
    if W.ndim != 2:
        raise Refused(f"got {path} with W of shape {W.shape}; allowed: (K, d)")
    H = columns(W, arrays.get("H"), arrays.get("features"))
    b = numbers("b", arrays["b"]) if "b" in arrays else np.zeros(len(W))
    K, d = W.shape
    problem = Problem(K, d, _entry(arrays["n"]), bias="b" in arrays, **decays)
    params = Params(*(np.asarray(x, np.float64) for x in (W, H, b)))
    check_params(problem, params)
    return problem, params


def named(labels: np.ndarray, classes: Sequence[str], ignore: Sequence[str]) -> dict[str, Any]:
    """The options `classes` and `ignore` of a command in the type of the labels of a file.

    Raises:
        Refused: text where the labels are numbers.
    """
    options: dict[str, Any] = {}
    for name, words in (("classes", classes), ("ignore", ignore)):
        if not words:
            continue
        try:
            options[name] = list(words) if labels.dtype.kind == "U" else [int(x) for x in words]
        except ValueError:
            raise Refused(
                f"got --{name} {' '.join(words)}; allowed: integers, as the labels are"
            ) from None
    return options


def show(title: str, rows: dict[str, Any], names: Sequence[str], as_json: bool) -> None:
    """Print a two-column table, or one JSON object with null for numbers that are not finite.

    Args:
        title: of the table.
        rows: values by their labels.
        names: the keys of the JSON object, in the order of the rows.
        as_json: whether to print that.
    """
    if as_json:
        print(values.text(dict(zip(names, rows.values(), strict=True))))
        return
    table = Table(title=title, show_header=False, title_justify="left")
    for label, x in rows.items():
        table.add_row(label, f"{x:.10g}" if isinstance(x, float) else str(x))
    Console().print(table)
