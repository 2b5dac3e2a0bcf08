"""Files of other programs: the arrays of an .npz or a .safetensors file.

No file is trusted. The sizes in its header are compared with its length and with the memory of the
machine before anything is allocated; nothing is unpickled; any other fault is refused, naming the
array.
"""

import math
import os
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from safetensors import deserialize

from ufm.check import Refused, fits, regular_file

SAFETENSORS = ".safetensors"
FORMATS = (".npz", SAFETENSORS)
FORM = f"an .npz or a {SAFETENSORS} file"
FEWER = "Give fewer samples"
# The arrays of a file and their shapes, for messages. Features are stored in one of two ways.
SHAPES = {
    "W": "(K, d)",
    "features": "(N, d)",
    "H": "(d, N)",
    "b": "(K,)",
    "labels": "(N,)",
    "n": "one number or (K,)",
    "lam_W": "one number",
    "lam_H": "one number",
    "lam_b": "one number",
    "bias": "one number",
}
# Types of safetensors; NumPy lacks bfloat16 and float8, JAX has them.
_TYPES: dict[str, Any] = {
    "F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": jnp.bfloat16,
    "F8_E4M3": jnp.float8_e4m3fn, "F8_E5M2": jnp.float8_e5m2,
    "I64": np.int64, "I32": np.int32, "I16": np.int16, "I8": np.int8,
    "U64": np.uint64, "U32": np.uint32, "U16": np.uint16, "U8": np.uint8, "BOOL": np.bool_,
}  # fmt: skip
_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


class _Member(NamedTuple):
    """An array in a zip archive: its entry, and the shape and dtype in its header."""

    info: zipfile.ZipInfo
    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def bytes(self) -> int:
        """The memory of the array."""
        return math.prod(self.shape) * self.dtype.itemsize


def is_file(path: Path) -> bool:
    """Whether a path is a file of arrays, existing or not, and not the folder of a run."""
    return not os.path.isdir(path) and (path.suffix.lower() in FORMATS or os.path.exists(path))


def arrays_of(path: Path, needed: Sequence[str], shard: bool = False) -> dict[str, np.ndarray]:
    """The arrays of a file, those of `SHAPES`; `features` (N, d) or `H` (d, N) is always needed.

    Args:
        path: of an .npz or a .safetensors file.
        needed: names that are required in addition to features and, unless it is a shard, W.
        shard: whether the file holds further samples for the classifier of another file.

    Raises:
        Refused: no such file or no regular one, another format, an array that is damaged, too
            large or of a type that has no numbers, a missing one, features given twice.
    """
    regular_file(path, FORM)
    try:
        found, names = _safetensors(path) if _is_safetensors(path) else _npz(path)
    except Refused:
        raise
    except Exception as error:  # whatever the parsers of the two formats raise
        kind = path.suffix if path.suffix in FORMATS else ".npz"
        raise Refused(
            f"got {path}, which is no {kind} file of plain arrays ({error}); {ways()}"
        ) from error
    if "features" in found and "H" in found:
        raise Refused(
            f"got {path} with features and H; allowed: one of them, since both are the features"
        )
    required = dict.fromkeys((*(() if shard else ("W",)), "features", *needed))
    missing = [name for name in required if name not in found]
    if "H" in found:
        missing.remove("features")
    if missing:
        shapes = ", ".join(f"{name} {SHAPES[name]}" for name in required)
        raise Refused(
            f"got {path} with arrays {sorted(names)}; missing {missing}. Needed: {shapes}; H "
            "(d, N) may stand for features"
        )
    return found


def ways() -> str:
    """How to write a file in an allowed format, for messages."""
    return (
        f"allowed: {FORM}. Write it with "
        'np.savez("features.npz", W=…, b=…, features=…, labels=…), or with '
        "safetensors.numpy.save_file of arrays that went through np.ascontiguousarray"
    )


def _is_safetensors(path: Path) -> bool:
    return path.suffix.lower() == SAFETENSORS


def _npz(path: Path) -> tuple[dict[str, np.ndarray], list[str]]:
    """(the arrays of `SHAPES`, names of all) in a zip of .npy files."""
    if not zipfile.is_zipfile(path):
        raise Refused(f"got {path}, {_what(path)}; {ways()}")
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        if any(entry.filename.endswith("data.pkl") for entry in entries):
            raise Refused(
                f"got {path}, a file of PyTorch, which holds code; allowed: plain arrays. Load it "
                "in PyTorch and "
                'np.savez("features.npz", W=fc.weight.detach().cpu().numpy(), '
                "b=fc.bias.detach().cpu().numpy(), features=…, labels=…)"
            )
        names = {entry.filename.removesuffix(".npy"): entry for entry in entries}
        members = {
            name: _member(archive, path, name, names[name]) for name in SHAPES if name in names
        }
        told = ", ".join(f"{name} of shape {member.shape}" for name, member in members.items())
        total = sum(member.bytes for member in members.values())
        fits(f"{path} with {told}", total, FEWER, machine=True)
        arrays = {}
        for name, member in members.items():
            with archive.open(member.info) as file:
                arrays[name] = np.lib.format.read_array(file, allow_pickle=False)
    return arrays, list(names)


def _what(path: Path) -> str:
    """The kind of a file by its first bytes, for messages."""
    with open(path, "rb") as file:
        head = file.read(6)
    if head == b"\x93NUMPY":
        return "a .npy file, a single array"
    if head[:1] == b"\x80":
        return "a pickle, as of torch.save, which may hold code"
    return "which is no .npz file: no zip archive" if head else "an empty file"


def _member(archive: zipfile.ZipFile, path: Path, name: str, info: zipfile.ZipInfo) -> _Member:
    """The header of an array, whose size is compared with the length of the data."""
    with archive.open(info) as file:
        shape, _, dtype = _HEADERS[np.lib.format.read_magic(file)](file)
        head = file.tell()
    member = _Member(info, shape, dtype)
    if dtype.hasobject:
        way = (
            "np.savez stores None so: where there is no bias leave b out"
            if name == "b"
            else f"Write np.array({name}.tolist()), all of one shape and type"
        )
        raise Refused(f"got {path} with {name} as Python objects; allowed: plain arrays. {way}")
    if dtype.kind == "V":
        raise Refused(
            f"got {path} with {name} of dtype {dtype}; allowed: numbers. An .npz forgets "
            f"bfloat16 and float8: write {name}.astype(np.float32)"
        )
    if head + member.bytes != info.file_size:
        raise Refused(
            f"got {path} with {name} of shape {shape} and dtype {dtype}, which takes "
            f"{member.bytes} bytes; the file holds {info.file_size - head} of them: it is damaged. "
            "Write it again"
        )
    return member


def _safetensors(path: Path) -> tuple[dict[str, np.ndarray], list[str]]:
    """(the arrays of `SHAPES`, names of all) in a .safetensors file."""
    length = path.stat().st_size
    # Its bytes, and the copy that the library returns.
    fits(f"{path} of {length} bytes", 2 * length, FEWER, machine=True)
    entries = dict(deserialize(path.read_bytes()))
    arrays = {}
    for name in entries.keys() & SHAPES.keys():
        dtype, shape = entries[name]["dtype"], entries[name]["shape"]
        if dtype not in _TYPES:
            raise Refused(f"got {path} with {name} of type {dtype}; allowed: {', '.join(_TYPES)}")
        arrays[name] = np.frombuffer(entries[name]["data"], _TYPES[dtype]).reshape(shape)
    return arrays, list(entries)


def matrix_of(path: Path) -> np.ndarray:
    """A matrix in an .npy file, or in text with one row a line, separated by spaces or commas.

    Raises:
        Refused: no such file, or one that holds no matrix.
    """
    regular_file(path, "a matrix")
    try:
        if path.suffix == ".npy":
            return np.load(path, allow_pickle=False)
        text = path.read_text(encoding="utf-8").replace(",", " ")
        return np.loadtxt(text.splitlines(), ndmin=2)
    except (OSError, ValueError, EOFError, UnicodeDecodeError) as error:
        raise Refused(
            f"got {path}, which holds no matrix ({' '.join(str(error).split())[:120]}); allowed: "
            "an .npy file, or text with one row of numbers a line"
        ) from None
