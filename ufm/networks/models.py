"""ResNets for small images and an MLP, in flax nnx, with a learned or a fixed simplex classifier.

Every network maps images (N, height, width, channels) to logits (N, K) = features Wᵀ + b.
`layers(x)` gives the features layer by layer, a tuple of arrays (N, d_l), feature maps averaged
over pixels, of which the classifier sees the last one. Source of the architecture: He, Zhang, Ren
and Sun 2016 (arXiv 1512.03385); of its narrowed form with a fixed classifier: Zhu et al. 2021
(arXiv 2105.02375, section 5.3).
"""

import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from ufm.check import Refused
from ufm.theory import geometry

STEMS = ("3x3", "3x3/2", "7x7/2")
SMALL = 2  # height and width up to which the output of a convolution is small


class Fixed(nnx.Variable):
    """A variable that is stored with the model and neither trained nor decayed."""


class SimplexHead(nnx.Module):
    """Logits of a classifier whose weight is fixed to a simplex ETF; the bias is learned.

    Args:
        d: width of the features, at least K − 1.
        K: number of classes.
        norm: of every row of the weight.
    """

    def __init__(self, d: int, K: int, norm: float = 1.0):
        self.weight = Fixed(norm * geometry.etf_classifier(K, d, dtype=jnp.float32))
        self.bias = nnx.Param(jnp.zeros(K, jnp.float32))

    def __call__(self, features: Float[Array, "N d"]) -> Float[Array, "N K"]:
        """features Wᵀ + b."""
        return features @ self.weight[...].T.astype(features.dtype) + self.bias[...]


class SimplexProjector(nnx.Module):
    """h ↦ √d y/‖y‖, y = M relu(Mᵀ h): two layers that are never trained, d to 2d to d.

    The rows of M (d, 2d) are a simplex ETF of d vectors (Harun, Gallardo and Kanan 2025, arXiv
    2502.10691, put such a projector between encoder and classifier); the output has norm √d.

    Args:
        d: width of the features, at least 2.
        key: a JAX PRNG key, which draws the orientation of M.
    """

    def __init__(self, d: int, key: Array):
        self.weight = Fixed(geometry.simplex_etf(d, 2 * d, key, jnp.float32))

    def __call__(self, features: Float[Array, "N d"]) -> Float[Array, "N d"]:
        """The projected features."""
        M = self.weight[...]
        y = nnx.relu(features @ M) @ M.T
        squares = jnp.mean(jnp.square(y), axis=1, keepdims=True)
        return y * jax.lax.rsqrt(squares + 1e-6)


class Block(nnx.Module):
    """relu(BN(conv(relu(BN(conv(x))))) + shortcut), with 3×3 convolutions without bias.

    The shortcut is the identity, or a 1×1 convolution with BN where the shape changes.
    """

    def __init__(self, inside: int, middle: int, outside: int, stride: int, rngs: nnx.Rngs):
        self.first = _convolution(inside, middle, 3, stride, rngs)
        self.second = _convolution(middle, outside, 3, 1, rngs)
        changes = stride != 1 or inside != outside
        self.shortcut = _convolution(inside, outside, 1, stride, rngs) if changes else None

    def __call__(self, x: Array) -> Array:
        """(N, h, w, inside) to (N, h/stride, w/stride, outside)."""
        y = self.second(nnx.relu(self.first(x)))
        return nnx.relu(y + (x if self.shortcut is None else self.shortcut(x)))


class ResNet(nnx.Module):
    """Stem, stages of basic blocks, average over pixels, classifier.

    Args:
        K: number of classes.
        channels: of the input images.
        widths: channels of each stage; every stage but the first halves the image.
        blocks: number of blocks in a stage.
        stem: "3x3" keeps the image's size, "3x3/2" halves it, "7x7/2" halves it and pools by 2
            more, as for ImageNet.
        d: width of the features; None keeps the last stage's, otherwise the last block is
            narrowed to d (Zhu et al. use d = K).
        head: "learned", or "simplex" for a fixed simplex ETF.
        projector: whether a `SimplexProjector` precedes the classifier, as one more layer.
        rngs: flax's streams of random numbers.

    Raises:
        Refused: an unknown stem or head.
    """

    def __init__(
        self,
        K: int,
        *,
        channels: int = 1,
        widths: Sequence[int] = (16, 32, 64),
        blocks: int = 1,
        stem: str = "3x3/2",
        d: int | None = None,
        head: str = "learned",
        projector: bool = False,
        rngs: nnx.Rngs,
    ):
        if stem not in STEMS:
            raise Refused(f"got stem={stem!r}; allowed: {', '.join(STEMS)}")
        size, stride = int(stem[0]), 2 if stem.endswith("/2") else 1
        self.pool = stem == "7x7/2"
        self.stem = _convolution(channels, widths[0], size, stride, rngs)
        stages, inside = [], widths[0]
        for stage, width in enumerate(widths):
            row = []
            for block in range(blocks):
                last = stage == len(widths) - 1 and block == blocks - 1
                outside = d if last and d is not None else width
                step = 2 if stage and not block else 1
                row.append(Block(inside, width, outside, step, rngs))
                inside = outside
            stages.append(nnx.List(row))
        self.stages = nnx.List(stages)
        self.projector = SimplexProjector(inside, rngs.params()) if projector else None
        self.head = _head(head, inside, K, rngs)

    def layers(self, images: Float[Array, "N h w c"]) -> tuple[Float[Array, "N d"], ...]:
        """Features after each stage, averaged over pixels; then those after the projector."""
        x = nnx.relu(self.stem(images))
        if self.pool:
            x = nnx.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))
        seen = []
        for stage in self.stages:
            for block in stage:
                x = block(x)
            seen.append(jnp.mean(x, axis=(1, 2)))
        if self.projector is not None:
            seen.append(self.projector(seen[-1]))
        return tuple(seen)

    def __call__(self, images: Float[Array, "N h w c"]) -> Float[Array, "N K"]:
        """Logits."""
        return self.head(self.layers(images)[-1])


class MLP(nnx.Module):
    """Layers of linear map, BN and relu, one for each width, and the classifier.

    Args:
        K: number of classes.
        inputs: height·width·channels.
        widths: of the hidden layers; the last is d.
        head: "learned" or "simplex".
        rngs: flax's streams of random numbers.
    """

    def __init__(
        self, K: int, inputs: int, widths: Sequence[int], *, head: str = "learned", rngs: nnx.Rngs
    ):
        sizes = [inputs, *widths]
        self.hidden = nnx.List(
            [
                nnx.Sequential(nnx.Linear(i, o, use_bias=False, rngs=rngs), _norm(o, rngs))
                for i, o in itertools.pairwise(sizes)
            ]
        )
        self.head = _head(head, sizes[-1], K, rngs)

    def layers(self, images: Float[Array, "N ..."]) -> tuple[Float[Array, "N d"], ...]:
        """Features after each hidden layer."""
        x, seen = images.reshape(len(images), -1), []
        for layer in self.hidden:
            x = nnx.relu(layer(x))
            seen.append(x)
        return tuple(seen)

    def __call__(self, images: Float[Array, "N ..."]) -> Float[Array, "N K"]:
        """Logits."""
        return self.head(self.layers(images)[-1])


def resnet18(
    K: int = 10,
    *,
    channels: int = 3,
    stem: str = "3x3",
    d: int | None = None,
    head: str = "learned",
    rngs: nnx.Rngs,
) -> ResNet:
    """ResNet-18: four stages of two blocks, 64 to 512 channels.

    With stem="7x7/2" and 3 channels it has 11,181,642 parameters at K = 10, and 8,867,542 with
    d = 10 and a simplex classifier, the fixed weight included: 20.70 % fewer, as in Zhu et al. The
    stem for small images has 7,680 parameters less. Arguments: see `ResNet`.
    """
    widths = (64, 128, 256, 512)
    return ResNet(
        K, channels=channels, widths=widths, blocks=2, stem=stem, d=d, head=head, rngs=rngs
    )


def count(model: nnx.Module) -> int:
    """Number of parameters, learned and fixed, without running statistics."""
    state = nnx.state(model, nnx.Any(nnx.Param, Fixed))
    return sum(variable.size for variable in nnx.to_flat_state(state).leaves)


def classifier(model: ResNet | MLP) -> tuple[Float[Array, "K d"], Float[Array, " K"]]:
    """(W, b) of the last layer."""
    if isinstance(model.head, SimplexHead):
        return model.head.weight[...], model.head.bias[...]
    assert model.head.bias is not None
    return model.head.kernel[...].T, model.head.bias[...]


def _head(kind: str, d: int, K: int, rngs: nnx.Rngs) -> nnx.Linear | SimplexHead:
    if kind == "simplex":
        return SimplexHead(d, K)
    if kind != "learned":
        raise Refused(f"got head={kind!r}; allowed: learned, simplex")
    return nnx.Linear(d, K, rngs=rngs)


def _convolution(inside: int, outside: int, size: int, stride: int, rngs: nnx.Rngs):
    convolution = nnx.Conv(
        inside,
        outside,
        (size, size),
        stride,
        padding=size // 2,
        use_bias=False,
        kernel_init=nnx.initializers.he_normal(),
        conv_general_dilated=_convolve,
        rngs=rngs,
    )
    return nnx.Sequential(convolution, _norm(outside, rngs))


def _convolve(x, kernel, strides, padding, **options):
    """XLA's convolution; on CPUs a matrix product for the smallest images, where it is faster."""
    if jax.default_backend() == "cpu" and max(x.shape[1:3]) <= SMALL * strides[0]:
        return as_product(x, kernel, strides, padding, **options)
    return jax.lax.conv_general_dilated(x, kernel, strides, padding, **options)


def as_product(
    x: Float[Array, "N h w i"],
    kernel: Float[Array, "a b i o"],
    strides: Sequence[int],
    padding: Sequence[tuple[int, int]],
    **options,
) -> Float[Array, "N p q o"]:
    """The convolution as one matrix product of shifted images and the kernel's rows."""
    a, b, inside, outside = kernel.shape
    x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    high, wide = ((x.shape[1 + i] - (a, b)[i]) // strides[i] + 1 for i in range(2))
    up, right = (strides[0] * (high - 1) + 1, strides[1] * (wide - 1) + 1)
    shifted = [
        x[:, i : i + up : strides[0], j : j + right : strides[1]]
        for i in range(a)
        for j in range(b)
    ]
    patches = jnp.concatenate(shifted, axis=-1)
    return jnp.matmul(
        patches, kernel.reshape(a * b * inside, outside), precision=options.get("precision")
    )


def _norm(width: int, rngs: nnx.Rngs) -> nnx.BatchNorm:
    # The defaults of PyTorch's BatchNorm, with which the papers' networks were trained.
    return nnx.BatchNorm(width, momentum=0.9, epsilon=1e-5, rngs=rngs)
