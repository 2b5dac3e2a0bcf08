"""What the scripts share: where the data are, what is trained on, one training with its checkpoint.

A training that was stopped resumes from its last record when the same command is given again; its
checkpoint is kept in runs/checkpoints/ until the script's results are complete.
"""

import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from experiments import runner
from ufm.networks import data, models, training
from ufm.networks.data import Images
from ufm.networks.training import Recipe

CLASSES = tuple(range(10))
# SHA-256 of FashionMNIST's test pixels. Results of other images are kept apart.
FASHION_MNIST = "c867c93ff95360594e8ec3287995350b824dd110b11595c0e13d5423f621867a"


@dataclasses.dataclass(frozen=True)
class Source:
    """Where the images come from."""

    data: str = ""  # folder of IDX files (gzipped or not) or of CIFAR-10's binary files
    download: bool = False  # fetch FashionMNIST (30 MB) if it is found nowhere

    def prepare(self) -> None:
        """See to it that the images can be read, here and by the script."""
        if self.data:
            os.environ[data.VARIABLE] = self.data
        try:
            data.load(download=self.download)
        except data.DataError as error:
            raise runner.MissingError(str(error)) from error

    def mark(self) -> str:
        """The digest of the images if a folder was named that holds others than FashionMNIST."""
        if not (self.data or os.environ.get(data.VARIABLE)):
            return ""
        self.prepare()
        digest = hashlib.sha256(data.load().test.pixels.tobytes()).hexdigest()
        return "" if digest == FASHION_MNIST else digest


@dataclasses.dataclass(frozen=True)
class Options(Source, runner.Options):
    """How to run."""


@dataclasses.dataclass(frozen=True)
class AllOptions(Source, runner.AllOptions):
    """Compare networks on real images with the model; exit 1 if a claim is refuted."""


@dataclasses.dataclass(frozen=True)
class Setting:
    """Fields of every script. The defaults are Zhu et al.'s ResNet-18 on all images, for a GPU."""

    per_class: int = 0  # training images a class; 0 takes all, 6,000 of FashionMNIST
    test_per_class: int = 0  # test images a class; 0 takes all, 1,000
    padding: int = 2  # black pixels on each side: 28 × 28 becomes 32 × 32
    widths: tuple[int, ...] = (64, 128, 256, 512)  # channels of the ResNet's stages
    blocks: int = 2  # a stage
    stem: str = "3x3"  # first convolution: 3x3, 3x3/2 (halves the image) or 7x7/2
    epochs: int = 200  # passes over the images; the rate falls tenfold after every fifth of them
    batch_size: int = 128  # images a step
    decay: float = 5e-4  # λ of all parameters
    records: int = 30  # measurements during training, evenly in the logarithm of the epoch
    seed: int = 0  # of the images chosen, of the weights at the start and of the batches


# The form for two CPU cores: 1,000 images, 77,754 parameters. A decay that acts within the few
# thousand steps that this takes: λ times rate times steps, as it is for the papers' runs.
SMALL: dict[str, Any] = {
    "per_class": 100,
    "test_per_class": 100,
    "padding": 0,
    "widths": (16, 32, 64),
    "blocks": 1,
    "stem": "3x3/2",
    "batch_size": 50,
    "decay": 1e-2,
}


def images(config: Setting, classes: tuple[int, ...] = CLASSES) -> tuple[Images, Images]:
    """(training, test) images of some classes, normalised, grouped by class."""
    source = data.load()
    train = data.select(source.train, config.per_class, classes, config.seed)
    test = data.select(source.test, config.test_per_class, classes, config.seed)
    first, second = data.normalise(train, test, padding=config.padding)
    return first, second


def resnet(config: Setting, part: Images, **options: Any) -> models.ResNet:
    """The ResNet of a configuration for these images; options as `models.ResNet` has them."""
    return models.ResNet(
        len(np.unique(part.labels)),
        channels=part.pixels.shape[-1],
        widths=config.widths,
        blocks=config.blocks,
        stem=config.stem,
        **{"rngs": nnx.Rngs(config.seed)} | options,
    )


def mlp(part: Images, hidden: tuple[int, ...], seed: int, head: str = "learned") -> models.MLP:
    """An MLP for these images; its weights are drawn as they are trained, in float32."""
    K, inputs = len(np.unique(part.labels)), int(np.prod(part.pixels.shape[1:]))
    with jax.enable_x64(False):
        return models.MLP(K, inputs, hidden, head=head, rngs=nnx.Rngs(seed))


def moments(epochs: int, records: int) -> list[int]:
    """Epochs to record: 0, then evenly in the logarithm, each once."""
    return [0, *np.unique(np.geomspace(1, epochs, records - 1).round().astype(int)).tolist()]


class Trainings:
    """The trainings of one script, run one after the other."""

    def __init__(self, folder: Path, progress: runner.Report, count: int):
        self.folder, self.progress, self.count, self.done = folder, progress, count, 0

    def run(
        self,
        name: str,
        model: Any,
        part: Images,
        method: Recipe,
        measure: Callable[[Any], training.Record],
        records: int,
        **options: Any,
    ) -> training.Trained:
        """Train; `options` as `training.train` has them."""

        def progress(share: float) -> None:
            self.progress((self.done + share) / self.count, name)

        trained = training.train(
            model,
            part,
            method,
            measure=measure,
            record_at=moments(method.epochs, records),
            folder=self.folder / str(self.done),
            progress=progress,
            **options,
        )
        self.done += 1
        return trained


@contextmanager
def trainings(script: str, config: Any, progress: runner.Report, count: int) -> Iterator[Trainings]:
    """Checkpoints of `count` trainings of a script; removed when all of them are done."""
    text = json.dumps(dataclasses.asdict(config)) + os.environ.get(data.VARIABLE, "")
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    folder = runner.ROOT / "runs" / "checkpoints" / f"{script}-{digest}"
    yield Trainings(folder, progress, count)
    # Those that `run` made, and the folder if nothing else lies there.
    for i in range(count):
        shutil.rmtree(folder / str(i), ignore_errors=True)
    with suppress(OSError):
        folder.rmdir()


def zero_from(errors: np.ndarray) -> int | None:
    """Index of the first record at which no training image is misclassified; None if there is none.

    The terminal phase of training begins there (Papyan, Han and Donoho 2020). It may be left for a
    while, as networks with BatchNorm and weight decay do (Lobacheva et al. 2021, arXiv 2106.15739).
    """
    zero = np.flatnonzero(np.asarray(errors) == 0)
    return int(zero[0]) if len(zero) else None
