"""Networks: file formats, exact parameter counts, training that resumes bit for bit, features."""

import gzip
import hashlib
import http.server
import importlib
import importlib.util
import json
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from flax import nnx
from safetensors.numpy import load_file

import ufm.networks
from ufm import cli
from ufm.networks import data, evaluation, models, training
from ufm.networks.data import DataError, Images
from ufm.networks.training import Recipe

NAMES = tuple(data.MD5)


def idx(array: np.ndarray) -> bytes:
    head = bytes((0, 0, 8, array.ndim)) + b"".join(n.to_bytes(4, "big") for n in array.shape)
    return head + array.tobytes()


def arrays(count: int = 12, seed: int = 0) -> dict[str, np.ndarray]:
    """Four arrays under the names of FashionMNIST's files: images 4 × 5, labels 0, 1, 2, …"""
    generator = np.random.default_rng(seed)
    made = {}
    for part, N in (("train", count), ("t10k", count // 2)):
        pixels = generator.integers(0, 256, (N, 4, 5), np.uint8)
        made[f"{part}-images-idx3-ubyte.gz"] = pixels
        made[f"{part}-labels-idx1-ubyte.gz"] = np.arange(N, dtype=np.uint8) % 3
    return made


@pytest.fixture
def folder(tmp_path) -> Path:
    """A folder with the four files, gzipped."""
    place = tmp_path / "images"
    place.mkdir()
    for name, array in arrays().items():
        (place / name).write_bytes(gzip.compress(idx(array)))
    return place


@pytest.fixture
def nowhere(monkeypatch, tmp_path) -> Path:
    """A machine without any data set; gives the folder of the cache."""
    monkeypatch.delenv(data.VARIABLE, raising=False)
    monkeypatch.setattr(data, "SHARED", Path("share/datasets/absent"))
    monkeypatch.setattr(data.pooch, "os_cache", lambda name: tmp_path / "cache" / name)
    return tmp_path / "cache" / "ufm" / "fashion-mnist"


# Files


@pytest.mark.parametrize("form", ["gzipped", "plain", "with dots"])
def test_idx_files_are_read_as_they_were_written(folder, form):
    for path in list(folder.iterdir()) if form != "gzipped" else []:
        name = path.stem if form == "plain" else path.stem.replace("-idx", ".idx")
        (folder / name).write_bytes(gzip.decompress(path.read_bytes()))
        path.unlink()
    found = data.load(folder)
    for part, name in ((found.train, "train"), (found.test, "t10k")):
        np.testing.assert_array_equal(part.pixels[..., 0], arrays()[f"{name}-images-idx3-ubyte.gz"])
        np.testing.assert_array_equal(part.labels, arrays()[f"{name}-labels-idx1-ubyte.gz"])


def test_cifar_files_are_read_channel_by_channel(tmp_path):
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, (2, 32, 32, 3), np.uint8)
    record = b"".join(
        bytes((label,)) + image.transpose(2, 0, 1).tobytes()
        for label, image in zip((7, 0), pixels, strict=True)
    )
    for name in (*data.CIFAR_TRAIN, data.CIFAR_TEST):
        (tmp_path / name).write_bytes(record)
    found = data.load(tmp_path)
    assert found.train.pixels.shape == (10, 32, 32, 3)
    np.testing.assert_array_equal(found.test.pixels, pixels)
    np.testing.assert_array_equal(found.test.labels, (7, 0))
    (tmp_path / data.CIFAR_TEST).write_bytes(record[:-1])
    with pytest.raises(DataError, match=r"damaged: got 6145 bytes.*unpack"):
        data.load(tmp_path)
    (tmp_path / data.CIFAR_TRAIN[2]).unlink()
    with pytest.raises(DataError, match=r"lacks data_batch_3\.bin"):
        data.load(tmp_path)


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        (NAMES[0], lambda x: x[:-5], "cannot be read"),
        (NAMES[0], lambda _: b"<html>not found</html>", "cannot be read"),
        (NAMES[0], lambda x: gzip.compress(gzip.decompress(x)[:-5]), "damaged: got 251 bytes"),
        (NAMES[0], lambda x: gzip.compress(gzip.decompress(x)[:9]), "damaged: got 9 bytes"),
        (NAMES[1], lambda _: gzip.compress(b"hello"), "no IDX file of bytes: got 68 65 6c 6c"),
        (NAMES[3], lambda _: gzip.compress(idx(np.zeros(5, np.uint8))), r"labels \(5,\)"),
    ],
)
def test_a_damaged_file_is_refused_with_its_name_and_the_ways_to_mend_it(
    folder, name, damage, message
):
    path = folder / name
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match=message) as error:
        data.load(folder)
    assert str(folder) in str(error.value)
    assert all(way in str(error.value) for way in ("apt install", "--data", "--download"))


def test_a_missing_file_is_named(folder):
    (folder / NAMES[1]).unlink()
    with pytest.raises(DataError, match=rf"lacks {NAMES[1]}\. Mend it"):
        data.load(folder)
    with pytest.raises(DataError, match="no folder"):
        data.load(folder / "absent")


def test_without_any_data_the_message_lists_the_places_and_the_ways(nowhere):
    with pytest.raises(DataError) as error:
        data.load()
    said = ("/usr/share/datasets/absent", str(nowhere), "apt install", "--data", "--download")
    assert all(part in str(error.value) for part in said)


def test_data_are_found_by_the_environment_variable(monkeypatch, folder):
    monkeypatch.setenv(data.VARIABLE, str(folder))
    assert len(data.load().train.labels) == 12


@pytest.fixture
def server(folder):
    """The folder over HTTP on this machine."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            """Nothing is logged."""

    with http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), partial(Quiet, directory=folder)
    ) as serving:
        thread = threading.Thread(target=serving.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{serving.server_port}/"
        serving.shutdown()
        thread.join()


def checksums(folder: Path) -> dict[str, str]:
    return {name: hashlib.md5((folder / name).read_bytes()).hexdigest() for name in NAMES}


def test_a_download_is_verified_and_found_again(monkeypatch, folder, server, nowhere):
    monkeypatch.setattr(data, "FASHION_MNIST", server)
    monkeypatch.setattr(data, "MD5", checksums(folder))
    downloaded = data.load(download=True)
    np.testing.assert_array_equal(downloaded.train.pixels, data.load(folder).train.pixels)
    assert sorted(path.name for path in nowhere.iterdir()) == sorted(NAMES)
    (folder / NAMES[0]).unlink()  # the second time nothing is fetched
    np.testing.assert_array_equal(data.load().test.labels, downloaded.test.labels)


def test_a_download_of_other_bytes_or_of_none_is_refused(folder, server, tmp_path):
    wrong = checksums(folder) | {NAMES[2]: "0" * 32}
    with pytest.raises(DataError, match=rf"could not download .*{NAMES[2]}.*hash"):
        data.fetch(tmp_path / "new", server, wrong)
    assert not (tmp_path / "new" / NAMES[2]).exists()
    with pytest.raises(DataError, match=r"(?s)could not download .*apt install"):
        data.fetch(tmp_path / "other", server + "absent/", checksums(folder))


@pytest.mark.slow
def test_the_installed_fashion_mnist_is_the_published_one():
    # The authors' gzip headers hold a name and a date; behind them the bytes are the same.
    dates = dict(zip(NAMES, (1504176606, 1504176606, 1504176627, 1504176627), strict=True))
    place = Path("/usr") / data.SHARED
    if not place.is_dir():
        pytest.skip("Debian's dataset-fashion-mnist is not installed")
    for name, date in dates.items():
        body = (place / name).read_bytes()[10:]
        head = b"\x1f\x8b\x08\x08" + date.to_bytes(4, "little") + b"\x00\x03"
        published = head + name.removesuffix(".gz").encode() + b"\0" + body
        assert hashlib.md5(published).hexdigest() == data.MD5[name]
    found = data.read(place)
    assert found.train.pixels.shape == (60_000, 28, 28, 1)
    assert np.bincount(found.test.labels).tolist() == [1000] * 10


# What is trained on


def test_a_selection_is_balanced_grouped_and_repeatable():
    part = data.Images(np.arange(30)[:, None], np.arange(30, dtype=np.int32) % 3)
    chosen = data.select(part, 4, (2, 0), seed=1)
    np.testing.assert_array_equal(chosen.labels, np.repeat((0, 1), 4))
    np.testing.assert_array_equal(chosen.pixels[:, 0] % 3, np.repeat((2, 0), 4))
    assert len(set(chosen.pixels[:, 0])) == 8
    np.testing.assert_array_equal(chosen.pixels, data.select(part, 4, (2, 0), seed=1).pixels)
    assert not np.array_equal(chosen.pixels, data.select(part, 4, (2, 0), seed=2).pixels)
    assert len(data.select(part, 0, (0, 1, 2)).labels) == 30
    with pytest.raises(ValueError, match=r"per_class=11.*\{2: 10, 0: 10\}"):
        data.select(part, 11, (2, 0))


def test_training_pixels_are_normalised_and_the_test_pixels_alike():
    generator = np.random.default_rng(0)
    parts = [
        Images(generator.integers(0, 256, (20, 4, 4, 3), np.uint8), np.zeros(20, np.int32))
        for _ in range(2)
    ]
    train, test = data.normalise(*parts, padding=1)
    assert train.pixels.shape == (20, 6, 6, 3)
    assert train.pixels.dtype == np.float32
    np.testing.assert_allclose(train.pixels.mean(axis=(0, 1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(train.pixels.std(axis=(0, 1, 2)), 1, atol=1e-5)
    both = data.normalise(parts[0], parts[0])
    np.testing.assert_array_equal(both[0].pixels, both[1].pixels)
    assert abs(test.pixels.mean()) > 1e-4


def test_random_labels_keep_images_and_counts_and_forget_the_classes():
    labels = np.repeat(np.arange(3, dtype=np.int32), 200)
    mixed = data.random_labels(Images(np.arange(600), labels))
    np.testing.assert_array_equal(mixed.labels, labels)
    np.testing.assert_array_equal(np.sort(mixed.pixels), np.arange(600))
    # Of 600 images a third keeps its class, give or take 12 (one standard deviation).
    assert abs(np.sum(labels[mixed.pixels] == mixed.labels) - 200) < 60


# Networks


@pytest.mark.parametrize(
    ("stem", "d", "head", "parameters"),
    [
        ("7x7/2", None, "learned", 11_181_642),
        ("7x7/2", 10, "simplex", 8_867_542),
        ("3x3", None, "learned", 11_173_962),
        ("3x3", 10, "simplex", 8_859_862),
    ],
)
def test_resnet18_has_exactly_the_published_number_of_parameters(stem, d, head, parameters):
    make = partial(models.resnet18, stem=stem, d=d, head=head)
    shapes = nnx.eval_shape(lambda: make(rngs=nnx.Rngs(0)))
    assert models.count(shapes) == parameters


@pytest.mark.parametrize(
    ("size", "stride"),
    [(3, 2), *(pytest.param(*x, marks=pytest.mark.slow) for x in [(1, 2), (3, 1), (7, 2)])],
)
def test_the_product_of_patches_is_the_convolution(size, stride):
    first, second = jax.random.split(jax.random.key(0))
    x = jax.random.normal(first, (2, 9, 8, 3))
    kernel = jax.random.normal(second, (size, size, 3, 4))
    options = (stride, stride), ((size // 2,) * 2,) * 2
    layout = {"dimension_numbers": ("NHWC", "HWIO", "NHWC")}
    expected = jax.lax.conv_general_dilated(x, kernel, *options, **layout)
    np.testing.assert_allclose(models.as_product(x, kernel, *options), expected, atol=1e-12)


def mlp(head: str = "learned", widths=(6, 4), inputs: int = 6, seed: int = 0) -> models.MLP:
    with jax.enable_x64(False):
        return models.MLP(3, inputs, widths, head=head, rngs=nnx.Rngs(seed))


def blobs(n: int = 8, seed: int = 0) -> Images:
    """Three separable classes of 1 × 6 pixels."""
    generator = np.random.default_rng(seed)
    labels = np.repeat(np.arange(3, dtype=np.int32), n)
    pixels = 2 * np.eye(3, 6)[labels] + 0.1 * generator.normal(size=(3 * n, 6))
    return Images(pixels.astype(np.float32)[:, None, :, None], labels)


def test_the_classifier_sees_the_last_layer():
    model = mlp("simplex")
    seen = evaluation.evaluate(model, blobs())
    assert [x.shape for x in seen.layers] == [(6, 24), (4, 24)]
    model.eval()
    logits = jax.jit(lambda x: model(x))(jnp.asarray(blobs().pixels))
    np.testing.assert_allclose(logits.T, seen.logits, atol=1e-6)


def test_a_projector_is_one_more_layer_of_fixed_norm_without_parameters_to_learn():
    make = partial(models.ResNet, 3, widths=(3, 4))
    plain, model = (
        nnx.eval_shape(lambda p=p: make(projector=p, rngs=nnx.Rngs(0))) for p in (False, True)
    )
    assert models.count(model) == models.count(plain) + 4 * 8
    with jax.enable_x64(False):
        projector = models.SimplexProjector(4, jax.random.key(0))
        assert not jax.tree.leaves(nnx.state(projector, nnx.Param))
        projected = projector(jax.random.normal(jax.random.key(1), (5, 4)))
    # The 1e-6 that keeps the norm of zero features finite shortens the others a little.
    np.testing.assert_allclose(np.sum(projected**2, axis=1), 4, rtol=1e-3)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"stem": "5x5"}, "allowed: 3x3, 3x3/2, 7x7/2"), ({"head": "fixed"}, "learned, simplex")],
)
def test_an_unknown_stem_or_head_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        models.ResNet(3, widths=(2,), rngs=nnx.Rngs(0), **options)


# Training


def measure(model) -> training.Record:
    seen = evaluation.evaluate(model, blobs())
    return {"loss": seen.loss, "norms": np.linalg.norm(seen.H, axis=0).tolist()}


def leaves(model) -> list[np.ndarray]:
    return [np.asarray(x) for x in jax.tree.leaves(nnx.state(model))]


SGD = Recipe("sgd", 5, batch_size=10, learning_rate=0.1, decay=1e-3)
LBFGS = Recipe("lbfgs", 4, batch_size=0, decay=1e-3)


@pytest.mark.parametrize("method", [SGD, pytest.param(LBFGS, marks=pytest.mark.slow)])
def test_a_training_that_was_stopped_ends_with_the_same_bits(tmp_path, method):
    images = blobs()
    options = {"seed": 3, "record_at": range(6)}
    whole = training.train(mlp("simplex"), images, method, measure=measure, **options)
    calls = 0

    def stops(model):
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return measure(model)

    with pytest.raises(KeyboardInterrupt):
        training.train(
            mlp("simplex"), images, method, measure=stops, folder=tmp_path / "c", **options
        )
    seen = []
    options |= {"folder": tmp_path / "c", "measure": measure}
    resumed = training.train(mlp("simplex"), images, method, progress=seen.append, **options)
    assert min(seen) == 1 / method.epochs  # it went on, and did not begin again
    assert resumed.history.keys() == whole.history.keys()
    for name, values in whole.history.items():
        np.testing.assert_array_equal(resumed.history[name], values)
    for one, other in zip(leaves(resumed.model), leaves(whole.model), strict=True):
        assert one.tobytes() == other.tobytes()
    assert whole.history["loss"][-1] < whole.history["loss"][0]
    if method is SGD:
        options["seed"] = 4
        with pytest.raises(ValueError, match=r"another training: seed differ"):
            training.train(mlp("simplex"), images, method, **options)


def test_a_training_that_was_killed_within_an_epoch_ends_with_the_same_bits(tmp_path, monkeypatch):
    def bias(model):
        return {"bias": np.asarray(models.classifier(model)[1]).tolist()}

    options = {"measure": bias, "seed": 3, "record_at": (2,)}
    whole = training.train(mlp(), blobs(), SGD, **options)
    step, calls = training._step, 0

    def dies(*args):
        nonlocal calls
        calls += 1
        if calls == 6:  # two steps an epoch: the second of the third
            raise KeyboardInterrupt
        return step(*args)

    monkeypatch.setattr(training, "_step", dies)
    with pytest.raises(KeyboardInterrupt):
        training.train(mlp(), blobs(), SGD, folder=tmp_path / "c", **options)
    monkeypatch.undo()
    resumed = training.train(mlp(), blobs(), SGD, folder=tmp_path / "c", **options)
    assert resumed.history["bias"].tobytes() == whole.history["bias"].tobytes()
    for one, other in zip(leaves(resumed.model), leaves(whole.model), strict=True):
        assert one.tobytes() == other.tobytes()


def test_a_fixed_classifier_stays_as_it_is_and_the_given_model_too():
    model = mlp("simplex")
    before = leaves(model)
    trained = training.train(model, blobs(), SGD, measure=lambda _: {}, record_at=())
    for one, other in zip(leaves(model), before, strict=True):
        np.testing.assert_array_equal(one, other)
    W, b = models.classifier(trained.model)
    np.testing.assert_array_equal(W, models.classifier(model)[0])
    assert np.any(b != models.classifier(model)[1])


def test_decay_acts_on_every_learned_parameter_and_on_nothing_else():
    model = mlp("simplex")
    graph, params, rest = nnx.split(model, nnx.Param, ...)
    pixels, labels = (jnp.asarray(x) for x in blobs())
    value = jax.jit(
        lambda decay: training.regularised(
            graph, training.cross_entropy, decay, params, rest, pixels, labels
        )[0]
    )
    plain, decayed = value(0.0), value(0.1)
    squares = sum(np.sum(np.square(x)) for x in jax.tree.leaves(params))
    np.testing.assert_allclose(decayed - plain, 0.05 * squares, rtol=1e-5)


@pytest.mark.parametrize(("optimizer", "rate"), [("sgd", 0.05), ("adam", 1e-3)])
def test_the_rate_falls_tenfold_after_every_fifth_of_the_epochs(optimizer, rate):
    method = Recipe(optimizer, 10, learning_rate=rate, momentum=0.0)
    transformation = method.transformation(steps=3)
    state, sizes = transformation.init(jnp.ones(())), []
    for _ in range(30):
        update, state = transformation.update(jnp.ones(()), state)
        sizes.append(-float(update))
    # Adam's step is its rate where the gradient does not change.
    expected = rate * 0.1 ** np.repeat(np.arange(5), 6)
    np.testing.assert_allclose(sizes, expected, rtol=1e-4)


def test_the_rate_falls_after_the_epochs_that_are_named():
    method = Recipe("sgd", 10, learning_rate=2.0, momentum=0.0, drops=(0.3, 0.6))
    transformation = method.transformation(steps=1)
    state, sizes = transformation.init(jnp.ones(())), []
    for _ in range(10):
        update, state = transformation.update(jnp.ones(()), state)
        sizes.append(-float(update))
    np.testing.assert_allclose(sizes, [2.0] * 3 + [0.2] * 3 + [0.02] * 4, rtol=1e-6)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"optimizer": "adamw"}, "allowed: sgd, adam, lbfgs"),
        ({"optimizer": "lbfgs"}, "batch_size=128 with 'lbfgs'; allowed: 0"),
        ({"epochs": 0}, "epochs=0; allowed: an integer >= 1"),
        ({"epochs": 2.5}, "epochs=2.5; allowed: an integer >= 1"),
        ({"batch_size": -1}, "batch_size=-1; allowed: an integer >= 0"),
        ({"learning_rate": 0.0}, "learning_rate=0.0; allowed: a finite number > 0"),
        ({"decay": -1.0}, "decay=-1.0; allowed: a finite number >= 0"),
        ({"decay": float("nan")}, "decay=nan; allowed: a finite number >= 0"),
        ({"momentum": 1.0}, "momentum=1.0; allowed: a finite number >= 0 and < 1"),
        ({"drops": (0.5, 0.5)}, "drops=.*allowed: increasing shares between 0 and 1"),
        ({"drops": (0.5, 1.0)}, "drops=.*allowed: increasing shares between 0 and 1"),
        ({"drops": (float("nan"),)}, "drops=.*allowed: increasing shares between 0 and 1"),
    ],
)
def test_a_method_that_makes_no_sense_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        Recipe(**fields)


def test_a_batch_larger_than_the_data_and_a_loss_that_explodes_are_refused():
    options = {"measure": lambda _: {}, "record_at": ()}
    with pytest.raises(ValueError, match="batch_size=128 for 24 images"):
        training.train(mlp(), blobs(), Recipe(), **options)
    with pytest.raises(ValueError, match="batch_size=128 for 24 images"):
        training.cost(mlp(), blobs(), Recipe())
    wild = Recipe("sgd", 5, batch_size=10, learning_rate=1e30)
    with pytest.raises(FloatingPointError, match="lower the learning rate"):
        training.train(mlp("simplex"), blobs(), wild, **options)


def relabelled(change) -> Images:
    images = blobs()
    return images._replace(labels=change(images.labels))


def with_nan() -> Images:
    pixels = blobs().pixels.copy()
    pixels[5, 0, :2, 0] = np.nan, np.inf
    return blobs()._replace(pixels=pixels)


BAD_IMAGES = {
    "from 1": (lambda: relabelled(lambda y: y + 1), r"label 3 \(8 of 24 .*labels - 1 where"),
    "an ignore label": (lambda: relabelled(lambda y: y - 3 * (y == 2)), r"label -1 \(8 of 24"),
    "another": (lambda: relabelled(lambda y: np.r_[y[:-1], 255]), r"255 \(1 of 24 .*sample 23"),
    "an empty class": (lambda: relabelled(lambda y: y // 2), "class 2 has no samples"),
    "fractions": (lambda: relabelled(lambda y: y + 0.5), "float64 with 0.5"),
    "one-hot": (lambda: relabelled(lambda y: np.eye(3)[y]), "argmax"),
    "too few": (lambda: relabelled(lambda y: y[:-1]), r"\(23,\); allowed: \(24,\)"),
    "pixels": (with_nan, "2 pixels that are NaN or infinite, in 1 of 24 images, .* image 5"),
    "no images": (lambda: Images(blobs().pixels[:0], blobs().labels[:0]), "N >= 1"),
    "complex": (lambda: blobs()._replace(pixels=blobs().pixels * 1j), "pixels of dtype complex64"),
}  # fmt: skip


@pytest.mark.parametrize(("make", "message"), BAD_IMAGES.values(), ids=BAD_IMAGES.keys())
def test_images_that_cannot_be_learned_are_refused_before_training(make, message):
    options = {"measure": lambda _: {}, "record_at": ()}
    with pytest.raises(ufm.Refused, match=message):
        training.train(mlp(), make(), SGD, **options)
    with pytest.raises(ufm.Refused, match=message):
        training.cost(mlp(), make(), SGD)


def test_a_module_without_a_known_classifier_needs_labels_without_a_gap():
    module = nnx.Linear(6, 3, rngs=nnx.Rngs(0))
    for change, message in ((lambda y: y + 1, "label 3 "), (lambda y: y - 1, "label -1 ")):
        with pytest.raises(ufm.Refused, match=message):
            training.train(module, relabelled(change), SGD, measure=lambda _: {}, record_at=())


def test_pixels_that_are_no_numbers_are_refused_wherever_images_are_taken():
    for take in (data.normalise, lambda images: evaluation.evaluate(mlp(), images)):
        with pytest.raises(ufm.Refused, match="2 pixels that are NaN or infinite"):
            take(with_nan())


def test_labels_that_are_no_rows_have_no_loss_and_no_error():
    seen = evaluation.evaluate(mlp(), relabelled(lambda y: np.where(y == 2, -1, y)))
    for name in ("loss", "error"):
        with pytest.raises(ufm.Refused, match="label -1"):
            getattr(seen, name)
    # Images to test on may lack a class.
    part = evaluation.evaluate(mlp(), relabelled(lambda y: y // 2))
    assert np.isfinite(part.loss)
    with pytest.raises(ufm.Refused, match="class 2 has no samples"):
        evaluation.collapse(part)


# Features


def test_features_of_a_network_are_measured_as_an_independent_implementation_does(tmp_path, capsys):
    images = blobs()
    seen = evaluation.evaluate(mlp(widths=(8, 5)), images, batch=7)
    assert seen.H.shape == (5, 24)
    path = tmp_path / "features.safetensors"
    evaluation.save_features(path, seen)
    stored = load_file(path)
    W, H, b, labels = (stored[name] for name in ("W", "H", "b", "labels"))
    losses = [reference.cross_entropy(W @ h + b, y) for h, y in zip(H.T, labels, strict=True)]
    np.testing.assert_allclose(seen.loss, np.mean(losses), rtol=1e-12)
    wrong = [np.argmax(W @ h + b) != y for h, y in zip(H.T, labels, strict=True)]
    assert seen.error == np.mean(wrong)
    nc = evaluation.collapse(seen)
    for found, expected in (
        (nc.nc1, reference.nc1_pinv(H, labels)),
        (nc.nc1_cdnv, reference.cdnv(H, labels)),
        (nc.nc2, reference.etf_distance(W @ W.T)),
        (nc.nc3_duality, reference.nc3_duality(W, H, labels)),
        (nc.nc4, reference.nc4_disagreement(W, H, b, labels)),
    ):
        np.testing.assert_allclose(found, expected, rtol=1e-9)
    assert cli.main(["measure", str(path), "--json"]) == 0
    assert f'"nc1": {nc.nc1!r}' in capsys.readouterr().out


def test_layers_and_test_images_are_measured_as_an_independent_implementation_does():
    seen = evaluation.evaluate(mlp(widths=(8, 5)), blobs())
    depth = evaluation.depth(seen)
    for H, nc1, error in zip(seen.layers, *depth, strict=True):
        np.testing.assert_allclose(nc1, reference.nc1_pinv(H, seen.labels), rtol=1e-9)
        means = np.stack([H[:, seen.labels == k].mean(axis=1) for k in range(3)])
        nearest = ((H.T[:, None] - means) ** 2).sum(axis=-1).argmin(axis=1)
        assert error == pytest.approx(np.mean(nearest != seen.labels), abs=1e-12)
    np.testing.assert_allclose(evaluation.class_means(seen), means, rtol=1e-12)
    other = evaluation.evaluate(mlp(widths=(8, 5)), blobs(seed=1))
    found = evaluation.collapse(other, means)
    spread = np.mean(((other.H.T - means[other.labels]) ** 2).sum(axis=1))
    between = np.mean(((means - means.mean(axis=0)) ** 2).sum(axis=1))
    np.testing.assert_allclose(found.nc1_trace_ratio, spread / between, rtol=1e-9)


def test_a_safetensors_file_that_is_none_is_refused(tmp_path, capsys):
    path = tmp_path / "features.safetensors"
    assert cli.main(["measure", str(path)]) == 2
    assert "does not exist" in capsys.readouterr().err
    path.write_bytes(b"nothing of the kind")
    assert cli.main(["measure", str(path)]) == 2
    assert "no .safetensors file of plain arrays" in capsys.readouterr().err


class Tensor(np.ndarray):
    """As much of a torch tensor as the README uses."""

    def detach(self):
        return self

    cpu = detach

    def numpy(self):
        return np.asarray(self)


class Layer:
    """As much of a torch linear layer as the README uses."""

    def __init__(self, W, b):
        self.weight, self.bias, self.hooks = W.view(Tensor), b.view(Tensor), []

    def register_forward_hook(self, hook):
        self.hooks.append(hook)

    def __call__(self, x):
        output = x @ self.weight.T + self.bias
        for hook in self.hooks:
            hook(self, (x,), output)
        return output


class FakeTorch:
    """As much of torch as the README uses."""

    @staticmethod
    def cat(parts):
        return np.concatenate(parts).view(Tensor)


def test_the_export_from_pytorch_in_the_readme_is_measured(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    generator = np.random.default_rng(0)
    W, b, features = (generator.normal(size=x) for x in ((3, 4), 3, (9, 4)))
    labels = np.arange(9) % 3
    torch = FakeTorch
    model, loader = Layer(W, b), [(x, y) for x, y in zip(features.reshape(3, 3, 4).view(Tensor),
                                  labels.reshape(3, 3).view(Tensor), strict=True)]  # fmt: skip
    if importlib.util.find_spec("torch") is not None:
        torch = importlib.import_module("torch")
        model = torch.nn.Linear(4, 3, dtype=torch.float64)
        with torch.no_grad():
            model.weight.copy_(torch.tensor(W)), model.bias.copy_(torch.tensor(b))
        loader = [tuple(torch.tensor(np.asarray(x)) for x in batch) for batch in loader]
    model.fc = model
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    code = readme.split("From PyTorch:\n\n```python\n")[1].split("```")[0]
    exec(code, {"np": np, "torch": torch, "model": model, "loader": loader})
    assert cli.main(["measure", "features.npz", "--json"]) == 0
    expected = reference.nc1_pinv(features.T, labels)
    assert json.loads(capsys.readouterr().out)["nc1"] == pytest.approx(expected, rel=1e-9)


# Without the extra


def test_without_the_extra_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "flax" else 1)
    with pytest.raises(ImportError, match=r"needs flax.*pip install 'ufm\[networks\]'"):
        importlib.reload(ufm.networks)


def test_without_the_extra_the_experiments_say_so_in_one_line():
    code = """
import importlib.util as util
find = util.find_spec
util.find_spec = lambda name, *more: None if name == "flax" else find(name, *more)
import experiments.networks
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("ufm.networks needs flax, which is not installed: pip install")
    assert len(done.stderr.splitlines()) == 1


def test_the_simulator_itself_needs_none_of_it():
    code = "import ufm.cli, sys; print(*{'flax', 'orbax', 'pooch', 'sklearn'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert done.stdout.strip() == b""
