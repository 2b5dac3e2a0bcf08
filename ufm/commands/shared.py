"""What every command shares: exit statuses, the flags of a model, stored input, printing."""

import json
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table
from safetensors import SafetensorError
from safetensors.numpy import load_file

from ufm import record
from ufm.check import Refused
from ufm.problem import Params, Problem, check_params

FAILED, REFUSED, INTERRUPTED = 1, 2, 130
SAFETENSORS = ".safetensors"
UNREADABLE = (
    ValueError,
    TypeError,
    KeyError,
    AttributeError,
    EOFError,
    zipfile.BadZipFile,
    SafetensorError,
)
# Of tables with many columns, as narrow as it gets: a row should fit a terminal of 80 columns.
LOOK: dict[str, Any] = {"box": None, "padding": (0, 1, 0, 0), "title_justify": "left"}
# What the .npz file of a point holds; `bias` may be left out.
POINT = {
    "W": "(K, d)",
    "H": "(d, N)",
    "b": "(K,)",
    "n": "one number or (K,)",
    "lam_W": "one number",
    "lam_H": "one number",
    "lam_b": "one number",
}


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


def stored_point(path: Path) -> tuple[Problem, Params]:
    """The problem and the last point of a finished run, or those of a .npz file.

    Raises:
        Refused: no such run or file, a run that is not finished or of another kind, a file in
            which something is missing or does not fit;
            sizes or decays that are not numbers.
    """
    if path.suffix == ".npz" and not path.is_dir():
        return _point_of_file(path)
    stored = record.load_run(path)
    if stored.manifest["kind"] != "descend" or not {"W", "H", "b"} <= stored.arrays.keys():
        raise Refused(
            f"got {path}, a run of kind {stored.manifest['kind']!r} with status "
            f"{stored.manifest['status']!r}; allowed: a finished run of `ufm descend --out`. "
            "If it was interrupted, give the command that began it again"
        )
    fields = stored.manifest["config"]["model"]
    model = Model(**fields | {"n": tuple(fields["n"])})
    return model.problem(), Params(*(jnp.asarray(stored.arrays[name]) for name in "WHb"))


def _point_of_file(path: Path) -> tuple[Problem, Params]:
    arrays = arrays_of(path, POINT)
    for name, axes in (("W", 2), ("lam_W", 0), ("lam_H", 0), ("lam_b", 0), ("bias", 0)):
        if name in arrays and arrays[name].ndim != axes:
            allowed = POINT.get(name, "one number")
            raise Refused(
                f"got {path} with {name} of shape {arrays[name].shape}; allowed: {allowed}"
            )
    K, d = arrays["W"].shape
    numbers = {name: arrays[name][()] for name in ("n", "lam_W", "lam_H", "lam_b")}
    bias: Any = arrays["bias"][()] if "bias" in arrays else True
    problem = Problem(K, d, **numbers, bias=bias)
    check_params(problem, Params(*(arrays[name] for name in "WHb")))
    return problem, Params(*(jnp.asarray(arrays[name]) for name in "WHb"))


def arrays_of(path: Path, required: dict[str, str]) -> dict[str, np.ndarray]:
    """The arrays of an .npz file, or of a .safetensors file.

    Args:
        path: of the file.
        required: name and shape, in words, of every array that must be there.

    Raises:
        Refused: no such file, no file of plain arrays, or a required array missing.
    """
    write = "np.savez" if path.suffix != SAFETENSORS else "safetensors.numpy.save_file"
    try:
        arrays = load_file(path) if path.suffix == SAFETENSORS else _npz(path)
    except FileNotFoundError:
        raise Refused(
            f"got {path}, which does not exist; allowed: an .npz or a {SAFETENSORS} file"
        ) from None
    except UNREADABLE as error:
        keywords = ", ".join(f"{name}=…" for name in required)
        raise Refused(
            f"got {path}, which is no {path.suffix or '.npz'} file of plain arrays ({error}); "
            f"write it with {write}, with {keywords}"
        ) from None
    missing = required.keys() - arrays.keys()
    if missing:
        shapes = ", ".join(f"{name} {shape}" for name, shape in required.items())
        raise Refused(
            f"got {path} with arrays {sorted(arrays)}; missing {sorted(missing)}. Needed: {shapes}"
        )
    return arrays


def _npz(path: Path) -> dict[str, np.ndarray]:
    if path.is_file() and not zipfile.is_zipfile(path):
        raise Refused("it is no zip archive")  # NumPy would speak of pickles
    with np.load(path, allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}


def show(title: str, rows: dict[str, Any], names: Sequence[str], as_json: bool) -> None:
    """Print a two-column table, or one JSON object under the short names."""
    if as_json:
        values = (x.item() if isinstance(x, np.generic) else x for x in rows.values())
        print(json.dumps(dict(zip(names, values, strict=True)), indent=2))
        return
    table = Table(title=title, show_header=False, title_justify="left")
    for label, x in rows.items():
        table.add_row(label, f"{x:.10g}" if isinstance(x, float) else str(x))
    Console().print(table)
