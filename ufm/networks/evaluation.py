"""What a network says of images: features layer by layer, its classifier, its errors.

The arrays have the shapes of the model, H (d, N) with samples as columns, in float64, so that
`ufm.metrics.collapse`, `ufm.certify` and `ufm.hessian` take them as they are.
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
        """The row of W that each label names; refuses labels that name none."""
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
    """A network on images, `batch` at a time, in evaluation mode (BatchNorm's running averages).

    Args:
        model: of `ufm.networks.models`; it is not changed.
        images: at least one.
        batch: bounds the memory that is needed.

    Raises:
        Refused: pixels that are no finite numbers.
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


def collapse(of: Evaluation) -> metrics.Collapse:
    """NC1–NC4 of the last layer."""
    return metrics.collapse(of.W, of.H, of.b, of.labels)


def save_features(path: Path, of: Evaluation) -> None:
    """Write W, H, b and labels as a safetensors file, for `ufm measure`."""
    arrays = {"W": of.W, "H": of.H, "b": of.b, "labels": of.labels}
    save_file({name: np.ascontiguousarray(x) for name, x in arrays.items()}, path)
