"""A network evaluated on images: features of every layer, the classifier, the errors.

The arrays have the shapes of the model, H (d, N) with samples as columns, in float64, so that
`ufm.metrics.collapse`, `ufm.certify` and `ufm.hessian` accept them.
"""

from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Float, Int
from safetensors.numpy import save_file

from ufm.metrics import measures as metrics
from ufm.metrics.labels import samples
from ufm.metrics.streaming import Accumulator
from ufm.networks import models
from ufm.networks.data import RENUMBER, Images, check_pixels

BATCH = 1000


class Evaluation(NamedTuple):
    """A network on N images: layers of features, the last one before the classifier (W, b).

    layers: (d_l, N) each; W: (K, d); b: (K,); labels: (N,).
    """

    layers: tuple[Float[np.ndarray, "_ N"], ...]
    W: Float[np.ndarray, "K d"]
    b: Float[np.ndarray, " K"]
    labels: Int[np.ndarray, " N"]

    @property
    def H(self) -> Float[np.ndarray, "d N"]:
        """The features that the classifier sees."""
        return self.layers[-1]

    @property
    def logits(self) -> Float[np.ndarray, "K N"]:
        """Z = WH + b1ᵀ."""
        return self.W @ self.H + self.b[:, None]

    @property
    def rows(self) -> Int[np.ndarray, " N"]:
        """The row of W for each label, (N,); labels without a row are refused."""
        K, N = len(self.W), self.H.shape[1]
        return samples(self.labels, K, N, every=False, way=RENUMBER).rows

    @property
    def loss(self) -> float:
        """Mean cross-entropy, in nats."""
        Z = self.logits - self.logits.max(axis=0)
        own = np.take_along_axis(Z, self.rows[None], axis=0)[0]
        return float(np.mean(np.log(np.exp(Z).sum(axis=0)) - own))

    @property
    def error(self) -> float:
        """Share of wrong predictions."""
        return float(np.mean(self.logits.argmax(axis=0) != self.rows))


def evaluate(model: Any, images: Images, batch: int = BATCH) -> Evaluation:
    """Evaluate a network on images in evaluation mode (BatchNorm's running averages).

    Args:
        model: of `ufm.networks.models`; it is not changed.
        images: at least one.
        batch: images at a time, which bounds the memory.

    Raises:
        Refused: pixels that are not finite numbers.
    """
    check_pixels(images)
    model = nnx.clone(model)
    model.eval()
    W, b = models.classifier(model)
    with jax.enable_x64(False), jax.default_matmul_precision("highest"):
        graph, state = nnx.split(model)
        parts = [
            _layers(graph, state, jnp.asarray(images.pixels[i : i + batch]))
            for i in range(0, len(images.pixels), batch)
        ]
    layers = (np.concatenate(x).T.astype(float) for x in zip(*parts, strict=True))
    return Evaluation(tuple(layers), np.asarray(W, float), np.asarray(b, float), images.labels)


@partial(jax.jit, static_argnums=0)
def _layers(graph, state, pixels):
    return nnx.merge(graph, state).layers(pixels)


def collapse(of: Evaluation, means: Float[np.ndarray, "K d"] | None = None) -> metrics.Collapse:
    """NC1–NC4 of the last layer, about the class means of the images or about given means.

    Args:
        of: an evaluation with images of every class; with `means` any classes.
        means: class means (K, d), such as the `class_means` of training images for an evaluation of
            test images; None takes those of the images.

    Raises:
        Refused: as `ufm.metrics.collapse`.
    """
    return metrics.collapse(of.W, of.H, of.b, of.labels, means=means)


def class_means(of: Evaluation) -> Float[np.ndarray, "K d"]:
    """Class means (K, d) of the features that the classifier sees, a row a class.

    Raises:
        Refused: a class without images.
    """
    return Accumulator(of.W, passes=2).add(of.H.T, of.labels).class_means


class Depth(NamedTuple):
    """Collapse layer by layer, (layers,), the last one before the classifier.

    nc1: tr(Σ_W Σ_B^†)/K of each layer; He and Su 2023 (arXiv 2210.17020) find that its logarithm
        decreases linearly with the layer in trained networks, the law of equi-separation.
    centre_error: share of images that are nearest to the mean of another class.
    """

    nc1: Float[np.ndarray, " layers"]
    centre_error: Float[np.ndarray, " layers"]


def depth(of: Evaluation) -> Depth:
    """NC1 and error of the nearest class mean in every layer.

    Raises:
        Refused: labels without a row of W; a class without images.
    """
    rows = []
    for H in of.layers:
        seen = Accumulator(np.zeros((len(of.W), len(H))), passes=2)
        seen.add(H.T, of.labels).again(H.T, of.labels)
        nearest = seen.detail().nearest_centre
        assert nearest is not None, "two passes give it"
        rows.append((seen.collapse().nc1, 1 - nearest))
    return Depth(*np.array(rows, float).T)


def save_features(path: Path, of: Evaluation) -> None:
    """Write W, H, b and labels as a safetensors file, for `ufm measure`."""
    arrays = {"W": of.W, "H": of.H, "b": of.b, "labels": of.labels}
    save_file({name: np.ascontiguousarray(x) for name, x in arrays.items()}, path)
