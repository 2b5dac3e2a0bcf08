"""Interpretation of labels: which sample belongs to which row of W.

Labels 0 … K−1 are rows of W. Any others need `classes`, the K labels in the order of the rows. No
sample is left out unless `ignore` names its label. Ambiguous labels are refused, and the message
says how to resolve them.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from ufm import check
from ufm.check import Refused, host, integer, several, shown, traced

MOST_SHOWN = 8  # labels in a message


class Samples(NamedTuple):
    """The samples that are not ignored, and the row of W that each belongs to.

    rows: (M,) entries 0 … K−1.
    kept: (M,) their indices among the N samples, in order; None if no sample is ignored.
    """

    rows: np.ndarray
    kept: np.ndarray | None

    def of(self, H):
        """The columns of H (d, N) that are not ignored, (d, M)."""
        return H if self.kept is None else H[:, self.kept]


def samples(
    labels, K: int, N: int, classes=None, ignore=None, *, every: bool = True, way: str = ""
) -> Samples:
    """Find the row of W that each sample belongs to.

    Args:
        labels: (N,), concrete arrays of any library: integers, floats with integer values, truth
            values for K = 2, or text.
        K: number of classes, the rows of W.
        N: number of samples.
        classes: the K labels in the order of the rows; None means 0 … K−1.
        ignore: label, or labels, of samples to leave out.
        every: whether each class must have a sample.
        way: the advice in messages on labels that do not fit, for callers that take neither
            `classes` nor `ignore`.

    Raises:
        Refused: labels of another shape or kind; a label without a row, naming it; a class without
            samples, naming it; `classes` that are not K distinct labels.
    """
    given = _plain(labels, K, N)
    text = given.dtype.kind == "U"
    rows_of = _rows_of(classes, K, text, given, way)
    left_out = set(_labels("ignore", ignore, text, K)) if ignore is not None else set()
    values, inverse = np.unique(given, return_inverse=True)
    names = values.tolist()
    strange = [x for x in names if x not in rows_of and x not in left_out]
    if strange:
        present = [x for x in names if x not in left_out]
        raise Refused(_unknown(strange, present, given, K, classes, way))
    # The row of every distinct label, −1 for those that are left out.
    table = [-1 if x in left_out else rows_of[x] for x in names]
    rows, kept = np.array(table, np.intp)[inverse.reshape(N)], None
    if -1 in table:
        kept = np.flatnonzero(rows >= 0)
        rows = rows[kept]
    found = set(table)
    absent = [x for x, row in rows_of.items() if row not in found] if every else []
    if absent:
        raise Refused(_without_samples(absent, rows_of, K, classes, way))
    return Samples(rows, kept)


def as_array(name: str, x) -> np.ndarray:
    """A NumPy array from an array of any library, such as a PyTorch tensor on any device.

    Raises:
        Refused: masked or sparse arrays, and objects that NumPy cannot read.
    """
    if np.ma.is_masked(x):
        raise Refused(
            f"got {name} with masked entries; allowed: plain arrays. Leave these samples out, or "
            "fill the entries"
        )
    if not isinstance(x, np.ndarray) and callable(getattr(x, "detach", None)):
        # A PyTorch tensor: detached from its graph, copied from its device.
        x = x.detach().cpu()
    try:
        found = check.array(x)
    except Exception as error:  # whatever a library raises whose arrays NumPy cannot read
        try:
            found = _converted(x)
        except Exception:
            raise Refused(f"got {name} that NumPy cannot read: {error}") from error
    if hasattr(x, "toarray"):
        raise Refused(f"got {name} as a sparse array; allowed: dense ones: {name}.toarray()")
    return found


def _converted(x) -> np.ndarray:
    """Arrays that NumPy cannot read directly: bfloat16 of PyTorch, other devices (CuPy)."""
    if callable(getattr(x, "is_floating_point", None)) and x.is_floating_point():
        return np.asarray(x.double())
    return np.from_dlpack(x, device="cpu")


def _plain(labels, K: int, N: int) -> np.ndarray:
    """The labels as an array (N,) of integers or text."""
    if labels is None:
        raise Refused("got no labels; allowed: labels (N,), the class of each sample")
    if traced(labels):
        raise Refused("got traced labels; allowed: concrete integers (close over them)")
    array = as_array("labels", labels)
    if array.shape != (N,):
        raise Refused(
            f"got labels with shape {array.shape}; allowed: ({N},), one a sample"
            f"{_shape_hint(array.shape, N)}"
        )
    kind = array.dtype.kind
    if kind in "iu":
        return array
    if kind in "UT":
        return array if kind == "U" else np.array(array.tolist(), np.str_)
    if kind == "b":
        if K != 2:
            raise Refused(
                f"got labels of dtype bool for K={K} classes; allowed: integers 0 … {K - 1}, and "
                "truth values for K=2"
            )
        return array.astype(np.int64)
    if jnp.issubdtype(array.dtype, jnp.integer):  # those of ml_dtypes
        return array.astype(np.int64)
    if jnp.issubdtype(array.dtype, jnp.floating):
        return _whole(array)
    if kind == "O" and isinstance(labels, list | tuple):
        raise Refused("got labels that mix truth values with numbers; allowed: one kind, integers")
    ways = {
        "O": "labels = np.array(labels.tolist()), or labels.astype(str) for names",
        "S": "labels = labels.astype(str)",
    }
    way = f". Write {ways[kind]}" if kind in ways else ""
    raise Refused(
        f"got labels of dtype {array.dtype}; allowed: integers, or text with classes={way}"
    )


def _shape_hint(shape: tuple[int, ...], N: int) -> str:
    if len(shape) == 2 and shape[0] * shape[1] == N:
        return "; write labels.ravel()"
    if len(shape) == 2 and N in shape:
        axis = 1 if shape[0] == N else 0
        return f". If they are one-hot, write labels.argmax(axis={axis})"
    return ""


def _whole(array: np.ndarray) -> np.ndarray:
    """Integers from floats with integer values."""
    exact = 2.0 ** (jnp.finfo(array.dtype).nmant + 1)
    values = array.astype(np.float64)
    finite = np.isfinite(values)
    if not finite.all():
        raise Refused(
            f"got {np.sum(~finite)} labels that are NaN or infinite, the first of sample "
            f"{int(np.argmin(finite))}; allowed: integers. Leave these samples out: keep = "
            "np.isfinite(labels), then labels[keep] and H[:, keep]"
        )
    good = (values == np.floor(values)) & (np.abs(values) <= exact)
    if not good.all():
        first = int(np.argmin(good))
        raise Refused(
            f"got labels of dtype {array.dtype} with {float(values[first])!r} for sample {first}; "
            f"allowed: integers, also as floats up to {exact:.0f}, which this dtype holds exactly"
        )
    return values.astype(np.int64)


def _labels(name: str, given: Any, text: bool, K: int) -> list[Any]:
    """The labels that `classes` or `ignore` list, as Python integers or strings."""
    entries = several(given)
    if entries is None:
        if name == "classes":
            raise Refused(
                f"got classes={shown(given)}; allowed: the K labels in the order of the rows of W"
            )
        entries = [given]
    found: list[Any] = []
    for entry in entries:
        value = host(entry)
        if text:
            if not isinstance(value, str):
                raise Refused(f"got {name} with {shown(value)}; allowed: text, as the labels are")
            found.append(str(value))
        elif isinstance(value, bool | np.bool_):
            if name == "ignore" and K != 2:
                raise Refused(
                    f"got ignore={value}; allowed: the label, or labels, of the samples to leave "
                    "out, such as ignore=-100"
                )
            found.append(int(value))
        else:
            whole = isinstance(value, float) and value.is_integer()
            found.append(integer(f"a label of {name}", int(value) if whole else value))
    return found


def _rows_of(classes: Any, K: int, text: bool, given: np.ndarray, way: str) -> dict[Any, int]:
    """Row of W of each label."""
    if classes is None:
        if text:
            names = listed([repr(x) for x in np.unique(given).tolist()])
            order = (
                f"text with classes=[…] (--classes), the {K} names in the order of the rows of W"
            )
            allowed = f"0 … {K - 1}. {way}" if way else order
            raise Refused(f"got labels that are text ({names}); allowed: {allowed}")
        return {k: k for k in range(K)}
    entries = _labels("classes", classes, text, K)
    if len(set(entries)) != len(entries) or len(entries) != K:
        raise Refused(
            f"got {len(entries)} classes, {len(set(entries))} of them distinct: "
            f"{listed(map(repr, entries))}; allowed: {K} distinct labels in the order of the "
            "rows of W"
        )
    return {label: k for k, label in enumerate(entries)}


def _unknown(strange: list, names: list, given: np.ndarray, K: int, classes: Any, way: str) -> str:
    """The message on labels without a row: which they are, and how to map or to ignore them."""
    where = np.isin(given, np.array(strange, given.dtype))
    which = listed(map(repr, strange))
    got = (
        f"got label{'s' * (len(strange) > 1)} {which} ({np.sum(where)} of {len(given)} samples, "
        f"the first is sample {int(np.argmax(where))})"
    )
    if way:
        return f"{got} for K={K}; allowed: 0 … {K - 1}, the rows of the classifier. {way}"
    ignore = repr(strange[0]) if len(strange) == 1 else f"[{which}]"
    leave = "" if where.all() else f" To leave these samples out give ignore={ignore} (--ignore)"
    if classes is not None:
        return f"{got}, not among classes; allowed: the {K} labels that classes lists.{leave}"
    rows = f"0 … {K - 1}, the rows of W, or other labels with classes=[…] (--classes), one a row"
    return f"{got} for K={K}; allowed: {rows}.{_suggestion(names, K)}{leave}"


def _suggestion(names: list, K: int) -> str:
    """The `classes` that K labels suggest, unless most of them are rows already."""
    if len(names) != K:
        return ""
    in_a_row = names == list(range(names[0], names[0] + K))
    if in_a_row or 2 * sum(0 <= x < K for x in names) <= K:
        order = f"range({names[0]}, {names[0] + K})" if in_a_row else f"[{listed(names)}]"
        return f" If the rows have the order of the labels, give classes={order}."
    return ""


def _without_samples(
    absent: list, rows_of: Mapping[Any, int], K: int, classes: Any, way: str
) -> str:
    """The message on classes without samples."""
    named = listed(map(repr, absent))
    subject = f"class {named} has" if len(absent) == 1 else f"classes {named} have"
    got = f"{subject} no samples; allowed: labels of every one of the K={K} classes"
    if way:
        return f"{got}. {way}"
    rows = f"[{listed(rows_of[x] for x in absent)}]"
    left = f"keep = np.delete(np.arange({K}), {rows}); W[keep], b[keep]"
    names = "keep" if classes is None else "np.asarray(classes)[keep]"
    return (
        f"{got}. Add samples, or measure the other classes alone: {left}, classes={names}; "
        'metrics.collapse(…, missing="skip") (--missing skip) gives NC1 and NC4 of those present'
    )


def listed(values) -> str:
    """Labels in a message; of many, the first ones."""
    texts = [str(x) for x in values]
    return ", ".join(texts[:MOST_SHOWN]) + (", …" if len(texts) > MOST_SHOWN else "")
