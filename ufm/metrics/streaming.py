"""NC1–NC4 of samples that come in batches: any array library, two passes or one, small memory.

One pass stores the class means and the scatter Σ_i (h_i − μ)(h_i − μ)ᵀ, K·d + d² numbers. With a
second pass over the same batches the scatter is not needed, only K·d numbers, and the nearest class
mean of each sample is found (NC4). If the means are given, for example those of training features,
one pass is enough for all measures. Everything is in float64 on the host.
"""

from typing import Any

import numpy as np

from ufm import check
from ufm.check import Refused
from ufm.linalg import scaling
from ufm.metrics import frames
from ufm.metrics import moments as in_one_pass
from ufm.metrics.centred import Centres, Sums, centres, logits, rounding
from ufm.metrics.features import classifier, finite, fit, in_numpy, normal, numbers
from ufm.metrics.labels import Samples, listed, samples
from ufm.metrics.result import Collapse, Detail
from ufm.metrics.summary import Known, collapsed, detailed

MEANS = ("class", "sample")
MISSING = ("refuse", "skip")


class Accumulator:
    """Measures of features that come in batches: `add` each, then call `collapse` and `detail`.

        seen = Accumulator(W, b)
        for features, labels in batches:      # NumPy, JAX, PyTorch on any device, …
            seen.add(features, labels)
        for features, labels in batches:      # a second pass, for NC4 and the nearest centres
            seen.again(features, labels)
        seen.collapse().nc1

    Args:
        W, b: classifier (K, d), a row a class, and bias (K,) or None.
        classes, ignore: as `ufm.metrics.collapse` takes them, for the labels.
        mean: the centre of the class means: "class", the mean of the class means, or "sample", the
            mean of all samples.
        means: class means (K, d), a row a class, about which to measure the samples, for example
            `class_means` of an accumulator of training features; None takes those of the samples.
        missing: what to do with classes without samples: "refuse" them, or "skip" them and measure
            those present. Ignored if `means` are given.
        passes: 1 stores d² more numbers and gives all but NC4 and the nearest centres without
            `again`; 2 requires `again`, and stores only K·d numbers.

    Every batch is converted in pieces of a few MiB. The order of samples and batches affects
    rounding only.

    Raises:
        Refused: arrays that are not real and finite or do not fit together; unknown options.
    """

    def __init__(
        self, W, b=None, *, classes=None, ignore=None, mean="class", means=None, missing="refuse",
        passes=1,
    ) -> None:  # fmt: skip
        self._W, self._b = _classifier(W, b)
        self._options = {"classes": classes, "ignore": ignore}
        K, d = self._W.shape
        self._mean = check.choice("mean", mean, MEANS)
        self._skip = check.choice("missing", missing, MISSING) == "skip"
        self._passes = check.integer("passes", passes, 1, 2)
        self._given = None if means is None else _given(means, K, d, self._mean)
        one_pass = self._passes == 1 and self._given is None
        self._moments = in_one_pass.empty(K, d, scatter=one_pass)
        self._right = np.zeros(K, np.int64) if one_pass else None
        self._sums: Sums | None = None
        self._names = check.several(classes) or list(range(K))
        # Checks classes and ignore before the first batch, on an empty one.
        kind = "U1" if isinstance(self._names[0], str) else np.int64
        samples(np.zeros(0, kind), K, 0, **self._options, every=False)

    @property
    def counts(self) -> np.ndarray:
        """Samples of each class so far, (K,)."""
        second = None if self._given is None else self._sums
        return (second or self._moments).counts.copy()

    @property
    def missing(self) -> tuple[Any, ...]:
        """Labels of the classes without samples so far."""
        return tuple(check.host(self._names[k]) for k in np.flatnonzero(self.counts == 0))

    @property
    def class_means(self) -> np.ndarray:
        """The class means, (K, d): those given, or those of the samples so far.

        Raises:
            Refused: a class without samples.
        """
        if self._given is not None:
            return self._given.copy()
        self._refuse_missing(most=0)
        return self._moments.means * self._moments.unit

    def add(self, features, labels) -> "Accumulator":
        """Add a batch: features (m, d), samples as rows, and labels (m,). Returns the accumulator.

        Raises:
            Refused: arrays that are not real and finite or do not fit; labels as in
                `ufm.metrics.collapse`; a batch after `again`.
        """
        X, rows = self._batch(features, labels)
        self._add(X, rows)
        return self

    def again(self, features, labels) -> "Accumulator":
        """Add a batch of the second pass over the same samples, in any order and any batches.

        Raises:
            Refused: as `add`; with given means, which need one pass only; a class without samples.
        """
        if self._given is not None:
            raise Refused("got a second pass, but means are given; allowed: `add` alone")
        X, rows = self._batch(features, labels)
        self._again(X, rows)
        return self

    def collapse(self) -> Collapse:
        """NC1–NC4 of all batches; nc4 is None after a single pass, unless means were given.

        Raises:
            Refused: no samples; a class without samples, naming it, unless these are skipped; a
                second pass that is missing or had other samples.
        """
        with np.errstate(over="ignore"):  # of nc4_mean_logit, infinite then
            return collapsed(self._known())

    def detail(self) -> Detail:
        """Accuracies, further statistics of angles and variances, and values of each class.

        Raises:
            Refused: as `collapse`.
        """
        with np.errstate(over="ignore"):  # of variances, infinite then
            return detailed(self._known(), self.missing)

    def second_moment(self) -> np.ndarray:
        """(1/N) Σ_i h_i h_iᵀ, (d, d), after one pass with `passes=1`; infinite on overflow.

        Raises:
            Refused: `passes=2` or given means, for which no scatter is stored; no samples.
        """
        S = self._moments.scatter
        if S is None or not self._moments.N:
            raise Refused("got no scatter; allowed: after `add`, with passes=1 and without means")
        M = self._moments.means * np.sqrt(self._moments.counts)[:, None]
        whole = np.triu(S) + np.triu(S, 1).T + M.T @ M
        with np.errstate(over="ignore"):
            return whole / self._moments.N * self._moments.unit * self._moments.unit

    def _batch(self, features, labels) -> tuple[np.ndarray, np.ndarray]:
        X, (K, d) = in_numpy("features", features), self._W.shape
        if X.ndim != 2 or X.shape[1] != d:
            raise Refused(
                f"got features of shape {X.shape} for W {self._W.shape}; allowed: (m, {d}), "
                "samples as rows"
            )
        rows, kept = samples(labels, K, len(X), **self._options, every=False)
        return finite("features", X if kept is None else X[kept]), rows

    def _add(self, X: np.ndarray, rows: np.ndarray) -> None:
        if self._given is not None:
            self._about_given(X).add(X, rows)
            return
        if self._sums is not None:
            raise Refused("got a batch for `add` after `again`; allowed: all of `add` first")
        in_one_pass.absorb(self._moments, X, rows)
        if self._right is not None:
            self._right += _hits(self._W, self._b, X, rows)

    def _again(self, X: np.ndarray, rows: np.ndarray) -> None:
        if self._sums is None:
            self._sums = self._fixed()
        self._sums.add(X, rows)

    def _about_given(self, X: np.ndarray) -> Sums:
        if self._sums is None:
            assert self._given is not None
            normal("means and features", max(in_one_pass.binade(x) for x in (self._given, X)))
            scale = float(scaling.binade(np, self._given, X.astype(np.float64)))
            at = _around(self._given / scale, np.ones(len(self._given)), scale, 0.0)
            self._sums = Sums(at, logits(self._W, self._b, scale))
        return self._sums

    def _fixed(self) -> Sums:
        """Empty sums about the means of the first pass."""
        return Sums(self._centres(), logits(self._W, self._b, self._moments.unit))

    def _centres(self) -> Centres:
        first = self._moments
        if not first.N:
            raise Refused("got no samples; allowed: at least one batch with samples")
        normal("features", first.scale)
        self._refuse_missing(most=len(self._names) - 2 if self._skip else 0)
        there = first.counts > 0
        weights = first.counts if self._mean == "sample" else there
        floor = rounding(first.total(), first.N)
        return centres(first.means, weights.astype(float), there, first.unit, floor)

    def _refuse_missing(self, most: int) -> None:
        absent = self.missing
        if len(absent) > most:
            subject = f"class{'es' * (len(absent) > 1)} {listed(map(repr, absent))}"
            way = ', or missing="skip" to measure those present'
            raise Refused(
                f"got no samples of {subject}; allowed: samples of "
                f"{'two classes' if most else 'every class'}{'' if self._skip else way}"
            )

    def _known(self) -> Known:
        first, sums = self._moments, self._sums
        if self._given is not None:
            if sums is None or not sums.counts.any():
                raise Refused("got no samples; allowed: at least one batch with samples")
            return Known.second(self._W, sums)
        if sums is None and self._passes == 2:
            raise Refused("got one pass; allowed: `again` for each batch, or passes=1")
        if sums is None:
            at = self._centres()
            assert first.scatter is not None
            assert self._right is not None
            along = in_one_pass.along(first.scatter, at.V)
            return Known(
                self._W, at, logits(self._W, self._b, at.scale), first.total(), first.counts,
                first.squares, along, None, None, self._right,
            )  # fmt: skip
        if not np.array_equal(sums.counts, first.counts):
            raise Refused(
                f"got {sums.counts.sum()} samples in the second pass after {first.N} in the first, "
                "or other labels; allowed: the same batches twice"
            )
        return Known.second(self._W, sums)


def detail(
    W, H, b=None, labels=None, *, classes=None, ignore=None, mean="class", means=None,
    missing="refuse",
) -> Detail:  # fmt: skip
    """Accuracies, further statistics of angles and variances, and values of each class.

    Arguments and refusals are those of `ufm.metrics.collapse`; everything is in NumPy and float64.
    An `Accumulator` gives `collapse` and `detail` from one reading of the data.
    """
    W, H, b = numbers("W", W), numbers("H", H), None if b is None else numbers("b", b)
    every = means is None and check.choice("missing", missing, MISSING) == "refuse"
    chosen = fit(W, H, b, labels, classes, ignore, every)
    return whole(W, H, b, chosen, mean, means, missing, classes).detail()


def whole(
    W, H, b, chosen: Samples, mean="class", means=None, missing="refuse", classes=None
) -> Accumulator:
    """Both passes over features in one array, H (d, N) in any real dtype.

    Args:
        W, b: classifier, and bias or None.
        H: features, columns are samples; may be mapped from disk.
        chosen: the samples that are not ignored, and their rows of W.
        mean, means, missing, classes: as of `Accumulator`.
    """
    H = in_numpy("H", H)
    _check_columns(H, chosen)
    seen = Accumulator(W, b, classes=classes, mean=mean, means=means, missing=missing, passes=2)
    steps = (seen._add,) if means is not None else (seen._add, seen._again)
    for step in steps:
        start = 0
        for X in in_one_pass.columns(H, chosen.kept, max(W.shape)):
            step(X, chosen.rows[start : start + len(X)])
            start += len(X)
    return seen


def _check_columns(H: np.ndarray, chosen: Samples) -> None:
    bad, top = 0, 0.0
    for X in in_one_pass.columns(H, chosen.kept, H.shape[0]):
        sizes = np.abs(X)
        bad += int((~np.isfinite(sizes)).sum())
        top = max(top, float(sizes.max(initial=0)))
    if bad:
        raise Refused(
            f"got {bad} non-finite entries in H of shape {H.shape}; allowed: finite numbers. "
            "Drop or repair the samples they come from"
        )
    normal("H", top)


def _classifier(W, b) -> tuple[np.ndarray, np.ndarray]:
    W, b = in_numpy("W", W), None if b is None else in_numpy("b", b)
    classifier(W, b)
    b = np.zeros(len(W)) if b is None else b
    W = finite("W", W.astype(np.float64))
    normal("W", float(abs(W).max()))
    return W, finite("b", b.astype(np.float64))


def _given(means, K: int, d: int, mean: str) -> np.ndarray:
    if mean == "sample":
        raise Refused(
            'got mean="sample" with means; allowed: mean="class", since the counts behind given '
            "means are not known"
        )
    found = in_numpy("means", means).astype(np.float64)
    if found.shape != (K, d):
        turned = "; these look transposed" if found.shape == (d, K) else ""
        raise Refused(
            f"got means of shape {found.shape}; allowed: ({K}, {d}), a row a class{turned}"
        )
    return finite("means", found)


def _around(means: np.ndarray, weights: np.ndarray, scale: float, floor: float) -> Centres:
    return centres(means, weights, np.ones(len(means), bool), scale, floor)


def _hits(W: np.ndarray, b: np.ndarray, X: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """How many samples of each class have argmax(Wh + b) as their class, (K,)."""
    found = np.zeros(len(W), np.int64)
    for part in frames.slices(len(X), max(W.shape)):
        block = X[part].astype(np.float64)
        scale = float(scaling.binade(np, block))
        V, c, _ = logits(W, b, scale)
        predicted = ((block / scale) @ V.T + c).argmax(axis=1)
        hits = rows[part][predicted == rows[part]]
        found += np.bincount(hits, minlength=len(W))
    return found
