"""Labelled images: IDX files (FashionMNIST, MNIST, KMNIST), CIFAR-10's binary files, subsets.

An IDX file is a big-endian header (two zero bytes, type 8 for bytes, number of dimensions, each
dimension in four bytes) and then the entries, last dimension fastest; it may be gzipped. A record
of CIFAR-10 is one byte for the label and 3·32·32 bytes, channel by channel. Sizes, labels and, for
downloads, checksums are verified.
"""

import gzip
import math
import os
import sys
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pooch

from ufm.check import Refused
from ufm.metrics.features import numbers
from ufm.metrics.labels import as_array, samples

FASHION_MNIST = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"
# MD5 of the gzipped files as their authors publish them. Debian's copies have the same content
# and another gzip header (without name and date).
MD5 = {
    "train-images-idx3-ubyte.gz": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
    "train-labels-idx1-ubyte.gz": "25c81989df183df01b3e8a0aad5dffbe",
    "t10k-images-idx3-ubyte.gz": "bef4ecab320f06d8554ea6380940ec79",
    "t10k-labels-idx1-ubyte.gz": "bb300cfdad3c16e7a12a480ee83cd310",
}
VARIABLE = "UFM_DATA"
SHARED = Path("share/datasets/fashion-mnist")
RENUMBER = (
    "Renumber the labels in the order of the rows (labels - 1 where they begin at 1), and leave "
    "other images out; data.select(images, count, classes) does both"
)
CIFAR_TRAIN = tuple(f"data_batch_{i}.bin" for i in range(1, 6))
CIFAR_TEST, CIFAR_RECORD = "test_batch.bin", 1 + 3 * 32 * 32


class DataError(Refused):
    """A data set that is missing, incomplete or damaged; the message says how to obtain it."""


class Images(NamedTuple):
    """Images: pixels (N, height, width, channels) and labels (N,), int32 from 0."""

    pixels: np.ndarray
    labels: np.ndarray


class Dataset(NamedTuple):
    """Training and test images, pixels as the bytes 0 … 255 of the files."""

    train: Images
    test: Images


# Where the files are


def load(folder: str | os.PathLike[str] | None = None, download: bool = False) -> Dataset:
    """The data set of a folder: four IDX files (gzipped or not), or CIFAR-10's six .bin files.

    Without a folder FashionMNIST is searched in $UFM_DATA, share/datasets/fashion-mnist below
    Python's prefix, /usr/local and /usr (where Debian's dataset-fashion-mnist installs it), and the
    cache of downloads.

    Args:
        folder: the only folder to search.
        download: download FashionMNIST (30 MB) into the cache if it is found nowhere.

    Raises:
        DataError: nothing found, or a file that is missing or damaged.
    """
    given = folder or os.environ.get(VARIABLE)
    if given:
        return read(Path(given))
    cache = Path(pooch.os_cache("ufm")) / "fashion-mnist"
    prefixes = dict.fromkeys((Path(sys.prefix), Path("/usr/local"), Path("/usr")))
    places = [*(prefix / SHARED for prefix in prefixes), cache]
    for place in places:
        if _idx_file(place, "train-images-idx3-ubyte") is not None:
            return read(place)
    if download:
        return read(fetch(cache))
    tried = "".join(f"\n  {place}" for place in places)
    raise DataError(f"no data set found; looked in{tried}\n{ways()}")


def ways() -> str:
    """Ways to obtain FashionMNIST, in words, for messages."""
    return (
        "Mend it in one of three ways: install Debian's package (apt install "
        f"dataset-fashion-mnist); give a folder that holds {', '.join(MD5)} (--data DIR, or "
        f"{VARIABLE}=DIR); or let it be downloaded (--download)"
    )


def fetch(folder: Path, url: str = "", checksums: dict[str, str] | None = None) -> Path:
    """Download those files of FashionMNIST that a folder lacks, and verify the MD5 of all.

    Args:
        folder: created if it does not exist.
        url, checksums: another server and its files; those of FashionMNIST by default.

    Raises:
        DataError: no connection, or a file with another checksum.
    """
    url, checksums = url or FASHION_MNIST, checksums or MD5
    registry = {name: f"md5:{digest}" for name, digest in checksums.items()}
    store = pooch.create(folder, url, registry=registry, retry_if_failed=1)
    for name in checksums:
        try:
            store.fetch(name, progressbar=sys.stderr.isatty())
        except (OSError, ValueError) as error:  # no connection; another checksum
            raise DataError(f"could not download {url}{name}: {error}\n{ways()}") from error
    return folder


def read(folder: Path) -> Dataset:
    """The data set of one folder.

    Raises:
        DataError: see `load`.
    """
    if not folder.is_dir():
        raise DataError(f"got {folder}, which is no folder. {ways()}")
    if (folder / CIFAR_TEST).is_file():
        return _read_cifar10(folder)
    parts = []
    for part in ("train", "t10k"):
        names = f"{part}-images-idx3-ubyte", f"{part}-labels-idx1-ubyte"
        files = [_idx_file(folder, name) for name in names]
        missing = [f"{name}.gz" for name, file in zip(names, files, strict=True) if file is None]
        if missing:
            raise DataError(f"{folder} lacks {' and '.join(missing)}. {ways()}")
        pixels, labels = (read_idx(file) for file in files if file is not None)
        if pixels.ndim != 3 or labels.shape != pixels.shape[:1] or not len(labels):
            raise DataError(
                f"{folder}: got {part} images {pixels.shape} and labels {labels.shape}; expected "
                f"(N, height, width) and (N,). {ways()}"
            )
        parts.append(Images(pixels[..., None], labels.astype(np.int32)))
    return Dataset(*parts)


def _idx_file(folder: Path, name: str) -> Path | None:
    found = (folder / f"{name}.gz", folder / name, folder / name.replace("-idx", ".idx"))
    return next((file for file in found if file.is_file()), None)


# Formats


def read_idx(file: Path) -> np.ndarray:
    """The bytes of an IDX file as an array of its dimensions; gzipped if the name ends in .gz.

    Raises:
        DataError: not an IDX file of bytes, or truncated, or with surplus bytes, or not gzipped.
    """
    try:
        data = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{file} cannot be read: {error}. {ways()}") from error
    if len(data) < 4 or data[:3] != b"\0\0\x08":
        raise DataError(
            f"{file} is no IDX file of bytes: got {data[:4].hex(' ') or 'nothing'} at its head, "
            f"expected 00 00 08. {ways()}"
        )
    head = 4 + 4 * data[3]
    shape = tuple(np.frombuffer(data[4:head], ">u4").tolist()) if len(data) >= head else ()
    size = math.prod(shape)
    if len(shape) != data[3] or len(data) != head + size:
        raise DataError(
            f"{file} is damaged: got {len(data)} bytes, its header {shape} asks for "
            f"{head + size}. {ways()}"
        )
    return np.frombuffer(data, np.uint8, offset=head).reshape(shape)


def _read_cifar10(folder: Path) -> Dataset:
    missing = [name for name in CIFAR_TRAIN if not (folder / name).is_file()]
    if missing:
        raise DataError(
            f"{folder} lacks {', '.join(missing)} of CIFAR-10. Mend it: unpack the binary version, "
            "cifar-10-binary.tar.gz, and give its folder"
        )
    train = [read_cifar10(folder / name) for name in CIFAR_TRAIN]
    joined = Images(*(np.concatenate(x) for x in zip(*train, strict=True)))
    return Dataset(joined, read_cifar10(folder / CIFAR_TEST))


def read_cifar10(file: Path) -> Images:
    """The images (N, 32, 32, 3) of one binary batch of CIFAR-10.

    Raises:
        DataError: a length that is no multiple of a record, or labels above 9.
    """
    data = np.frombuffer(file.read_bytes(), np.uint8)
    if not len(data) or len(data) % CIFAR_RECORD:
        raise DataError(
            f"{file} is damaged: got {len(data)} bytes, expected a multiple of {CIFAR_RECORD}. "
            "Mend it: unpack cifar-10-binary.tar.gz again"
        )
    records = data.reshape(-1, CIFAR_RECORD)
    if records[:, 0].max() > 9:
        raise DataError(
            f"{file} is no batch of CIFAR-10: got a label of {records[:, 0].max()}, allowed 0 … 9. "
            "CIFAR-100 has another layout"
        )
    pixels = records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return Images(pixels, records[:, 0].astype(np.int32))


# What is trained on


def select(images: Images, per_class: int, classes: Sequence[int], seed: int = 0) -> Images:
    """`per_class` random images of each class, grouped by class, labels 0 … len(classes)−1.

    The order is that of the samples of `ufm.Problem`.

    Args:
        images: the images to draw from, without replacement.
        per_class: at least 1; 0 takes as many of each as the rarest class has.
        classes: original labels, in the order of the new ones.
        seed: of NumPy's generator.

    Raises:
        Refused: a class with fewer images.
    """
    generator = np.random.default_rng(seed)
    places = [np.flatnonzero(images.labels == k) for k in classes]
    least = min(len(place) for place in places)
    count = per_class or least
    if not 0 < count <= least:
        counts = {k: len(place) for k, place in zip(classes, places, strict=True)}
        raise Refused(f"got per_class={per_class}; the images of each class are {counts}")
    chosen = np.concatenate([np.sort(generator.permutation(p)[:count]) for p in places])
    labels = np.repeat(np.arange(len(classes), dtype=np.int32), count)
    return Images(images.pixels[chosen], labels)


def normalise(*parts: Images, padding: int = 0) -> tuple[Images, ...]:
    """Pixels in float32, such that every channel of the first part has mean 0 and variance 1.

    Args:
        parts: training images first; the others are shifted and scaled like these.
        padding: black pixels added on every side (2 makes 28 × 28 into 32 × 32).

    Raises:
        Refused: pixels as `check_pixels` refuses them.
    """
    for part in parts:
        check_pixels(part)
    size = ((0, 0), (padding, padding), (padding, padding), (0, 0))
    padded = [np.pad(part.pixels, size).astype(np.float32) / 255 for part in parts]
    mean = padded[0].mean(axis=(0, 1, 2), dtype=np.float64)
    deviation = padded[0].std(axis=(0, 1, 2), dtype=np.float64)
    scale = np.where(deviation > 0, deviation, 1)
    return tuple(
        Images(((pixels - mean) / scale).astype(np.float32), part.labels)
        for pixels, part in zip(padded, parts, strict=True)
    )


def random_labels(images: Images, seed: int = 0) -> Images:
    """The same images with permuted labels, which have the same counts, grouped by the new ones."""
    labels = np.random.default_rng(seed).permutation(images.labels)
    order = np.argsort(labels, kind="stable")
    return Images(images.pixels[order], labels[order])


def rows(images: Images, K: int | None = None) -> np.ndarray:
    """The row of the classifier that each image belongs to, (N,), after checks of the images.

    Args:
        images: at least one of each class.
        K: number of classes, whose labels are 0 … K−1; None takes as many as there are labels.

    Raises:
        Refused: a label that is not one of these, naming it; a class without images, naming it;
            pixels as `check_pixels` refuses them.
    """
    check_pixels(images)
    K = K or len(set(as_array("labels", images.labels).ravel().tolist()))
    return samples(images.labels, K, len(images.pixels), way=RENUMBER).rows.astype(np.int32)


def check_pixels(images: Images) -> None:
    """Refuse pixels that are not real, finite numbers.

    Raises:
        Refused: naming how many are not, and the first image that holds one.
    """
    pixels = numbers("pixels", images.pixels)
    if pixels.ndim < 1 or not len(pixels):
        raise Refused(f"got pixels of shape {pixels.shape}; allowed: (N, …), N >= 1 images")
    finite = np.isfinite(pixels)
    if not finite.all():
        whole = finite.reshape(len(pixels), -1).all(axis=1)
        raise Refused(
            f"got {np.sum(~finite)} pixels that are NaN or infinite, in {np.sum(~whole)} of "
            f"{len(whole)} images, the first is image {int(np.argmin(whole))}; allowed: finite "
            "numbers. Leave these images out, or repair them"
        )
