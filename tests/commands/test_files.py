"""Files of other programs: what lies in them is used or refused, and none is trusted."""

import dataclasses
import io
import json
import os
import struct
import zipfile
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import reference
from safetensors.numpy import load_file, save_file

import ufm
from ufm import cli
from ufm.runs import record

K, D, N = 3, 4, 12
DECAYS = {"lam_W": 5e-3, "lam_H": 2e-3, "lam_b": 1e-2}


def arrays(**changes):
    """The arrays of a file: a classifier, its features in the order of a data set, decays."""
    generator = np.random.default_rng(0)
    labels = generator.permutation(np.repeat(np.arange(K), (5, 3, 4)))
    W, b = generator.normal(size=(K, D)), generator.normal(size=K)
    features = W[labels] + 0.3 * generator.normal(size=(N, D))
    made = {"W": W, "b": b, "features": features, "labels": labels} | DECAYS
    return {name: x for name, x in (made | changes).items() if x is not None}


def save(path: Path, made) -> Path:
    """The file, in the format of its name."""
    if path.suffix == ".npz":
        np.savez(path, **made)
    else:
        save_file({name: np.ascontiguousarray(x) for name, x in made.items()}, path)
    return path


def run(capsys, *arguments):
    """Exit status, standard output and standard error of one command."""
    status = cli.main([str(a) for a in arguments])
    out, err = capsys.readouterr()
    return status, out, err


def refused(capsys, *arguments) -> str:
    status, out, err = run(capsys, *arguments)
    assert (status, out) == (2, "")
    return err


@pytest.fixture(params=[".npz", ".safetensors"])
def path(request, tmp_path) -> Path:
    return tmp_path / f"point{request.param}"


# Labels of a file


def value(made) -> float:
    """f by the reference, of samples in any order."""
    H, b = made["features"].T, made.get("b", np.zeros(K))
    return reference.objective(made["W"], H, b, made["labels"], *DECAYS.values())


def test_certify_uses_the_labels_of_a_file(capsys, path):
    made = arrays()
    H = {"features": None, "H": made["features"].T}
    for changes in ({}, H, {"n": (5, 3, 4)}, {"bias": True}, {"b": None, "lam_b": None}):
        made = arrays(**changes)
        save(path, made)
        status, out, _ = run(capsys, "certify", path, "--json")
        assert status == 0
        got = json.loads(out)["value"]
        assert got == pytest.approx(value(arrays(b=made.get("b"))), rel=1e-13)


def test_a_file_is_certified_under_the_loss_that_is_named(capsys, tmp_path):
    made = arrays()
    save(tmp_path / "f.npz", made)
    H, (W, b) = made["features"].T, (made["W"], made["b"])
    problem, params = ufm.Problem.from_features(W, H, b, made["labels"], **DECAYS)
    problem = dataclasses.replace(problem, loss="Focal(gamma=2.0)")
    status, out, _ = run(
        capsys, "certify", tmp_path / "f.npz", "--loss", "Focal(gamma=2.0)", "--json"
    )
    assert status == 0
    told, expected = json.loads(out), ufm.certify(problem, params)
    assert told["value"] == pytest.approx(expected.value, rel=1e-12)
    assert told["lower_bound"] == pytest.approx(expected.lower_bound, rel=1e-9)
    assert "allowed: CrossEntropy" in refused(
        capsys, "certify", tmp_path / "f.npz", "--loss", "Hinge"
    )


def test_a_run_holds_its_own_loss(capsys, tmp_path):
    words = ["--K", 3, "--d", 3, "--n", 2, "--steps", 5, "--loss", "SquaredError"]
    assert run(capsys, "descend", *words, "--out", tmp_path / "run")[0] in (0, 3)
    status, out, _ = run(capsys, "certify", tmp_path / "run", "--json")
    assert status == 0
    assert json.loads(out)["value"] < 0.4  # of the squared error at its start; log 3 is not below
    error = refused(capsys, "probe", tmp_path / "run", "--loss", "SquaredError")
    assert "A run holds its own loss" in error


@pytest.mark.long
def test_probe_counts_as_it_does_for_grouped_samples(capsys, tmp_path):
    problem = ufm.Problem(3, 4, (2, 3, 2), 5e-3, 5e-3, 5e-4)
    zeros = {name: np.zeros(shape) for name, shape in (("W", (3, 4)), ("H", (4, 7)), ("b", 3))}
    decays = {name: getattr(problem, name) for name in DECAYS}
    mixed = np.random.default_rng(0).permutation(problem.labels)
    for name, changes in (("grouped", {"n": problem.n}), ("mixed", {"labels": mixed})):
        save(tmp_path / f"{name}.npz", zeros | decays | changes)
        status, out, _ = run(capsys, "probe", tmp_path / f"{name}.npz", "--k", 1, "--json")
        assert status == 0
        got = json.loads(out)
        expected = ufm.hessian.inertia(problem, ufm.Params(*zeros.values()))
        assert (got["index"], got["nullity"]) == expected[:2]


def test_options_name_the_classes_and_the_samples_to_leave_out(capsys, path):
    made = arrays()
    labels = made["labels"]
    moved = np.where(np.arange(N) == 7, -100, labels + 1)
    save(path, made | {"labels": moved})
    options = ("--classes", 1, 2, 3, "--ignore", -100, "--json")
    kept = np.arange(N) != 7
    left = made | {"features": made["features"][kept], "labels": labels[kept]}
    status, out, _ = run(capsys, "certify", path, *options)
    assert status == 0
    assert json.loads(out)["value"] == pytest.approx(value(left), rel=1e-13)
    status, out, _ = run(capsys, "measure", path, *options)
    assert status == 0
    measured = ufm.metrics.collapse(made["W"], left["features"].T, made["b"], left["labels"])
    assert json.loads(out) | measured._asdict() == json.loads(out)


def test_text_labels_need_their_order(capsys, tmp_path):
    made = arrays()
    names = np.array(["owl", "cat", "dog"])
    save(tmp_path / "f.npz", made | {"labels": names[made["labels"]]})
    assert "'cat', 'dog', 'owl'" in refused(capsys, "measure", tmp_path / "f.npz")
    status, out, _ = run(capsys, "measure", tmp_path / "f.npz", "--classes", *names, "--json")
    assert status == 0
    plain = ufm.metrics.collapse(made["W"], made["features"].T, made["b"], made["labels"])
    assert json.loads(out) | plain._asdict() == json.loads(out)


CONTRADICTIONS = {
    "n of labels": ({"n": 4}, [], "n=4, but its labels count n=(5, 3, 4)"),
    "counts of labels": ({"n": [5, 4, 3]}, [], "n=(5, 4, 3), but its labels count n=(5, 3, 4)"),
    "n of classes": ({"n": [5, 7]}, [], "K=3 counts"),
    "n and ignored": ({"n": [5, 3, 4]}, ["--ignore", 9], None),
    "no n, no labels": ({"labels": None}, [], "without labels and without n"),
    "classes, no labels": ({"labels": None, "n": 4}, ["--classes", 1, 2, 3], "holds no labels"),
    "shifted labels": ({"labels": np.arange(N) % 3 + 1}, [], "classes=range(1, 4)"),
    "words for numbers": ({}, ["--classes", "a", "b", "c"], "--classes a b c; allowed: integers"),
    "features twice": ({"H": np.ones((D, N))}, [], "features and H"),
    "features transposed": ({"features": np.ones((D, N))}, [], "look transposed"),
    "no features": ({"features": None}, [], "missing ['features']"),
    "no decay": ({"lam_W": None, "lam_H": None}, [], "missing ['lam_W', 'lam_H']"),
    "no decay of the bias": ({"lam_b": None}, [], "missing ['lam_b']"),
    "two decays": ({"lam_H": np.ones(2)}, [], "lam_H of shape (2,); allowed: one number"),
    "no bias, but b": ({"bias": False}, [], "bias=False but a b that is not 0"),
    "a bias, but no b": ({"bias": True, "b": None}, [], "bias=True but no b"),
    "a bias of numbers": ({"bias": 1.0}, [], "got bias="),
    "one logit": ({"W": np.ones((1, D)), "b": np.ones(1)}, [], "np.vstack([-w, w]) / 2"),
}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "options", "message"), CONTRADICTIONS.values(), ids=CONTRADICTIONS.keys()
)
def test_a_file_that_contradicts_itself_is_refused(capsys, path, changes, options, message):
    save(path, arrays(**changes))
    if message is None:
        assert run(capsys, "certify", path, *options)[0] == 0
    else:
        assert message in refused(capsys, "certify", path, *options)


# Types


@pytest.mark.parametrize("dtype", [np.float16, np.float32, jnp.bfloat16, ">f8", np.int8])
def test_numbers_of_any_type_are_read_as_the_numbers_they_are(capsys, path, dtype):
    made = {name: arrays()[name].astype(dtype) for name in ("W", "b", "features")}
    if path.suffix == ".npz" and dtype is jnp.bfloat16:
        save(path, arrays() | made)
        message = refused(capsys, "certify", path)
        assert "W of dtype |V2" in message
        assert "W.astype(np.float32)" in message
        return
    save(path, arrays() | made)
    exact = arrays() | {name: x.astype(np.float64) for name, x in made.items()}
    status, out, _ = run(capsys, "certify", path, "--json")
    assert status == 0
    assert json.loads(out)["value"] == pytest.approx(value(exact), rel=1e-13)


def written(entries: dict[str, tuple[str, np.ndarray]]) -> bytes:
    """A .safetensors file by its definition: length of the header, header, arrays."""
    header, data = {}, b""
    for name, (kind, x) in entries.items():
        places = [len(data), len(data) + x.nbytes]
        header[name] = {"dtype": kind, "shape": list(x.shape), "data_offsets": places}
        data += x.tobytes()
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


@pytest.mark.parametrize(
    ("kind", "dtype"), [("F8_E4M3", jnp.float8_e4m3fn), ("F8_E5M2", jnp.float8_e5m2)]
)
def test_quarter_precision_is_read(capsys, tmp_path, kind, dtype):
    made = arrays()
    small = {name: made[name].astype(dtype) for name in ("W", "features")}
    entries = {name: (kind, x) for name, x in small.items()} | {"labels": ("I64", made["labels"])}
    (tmp_path / "f.safetensors").write_bytes(written(entries))
    status, out, _ = run(capsys, "measure", tmp_path / "f.safetensors", "--json")
    assert status == 0
    expected = reference.nc1_pinv(small["features"].T.astype(np.float64), made["labels"])
    assert json.loads(out)["nc1"] == pytest.approx(expected, rel=1e-9)
    entries["W"] = ("C64", made["W"].astype(np.complex64))
    (tmp_path / "f.safetensors").write_bytes(written(entries))
    # Before 0.7 the library itself does not know the type, and does not name it.
    assert "f.safetensors" in refused(capsys, "measure", tmp_path / "f.safetensors")


def test_the_writer_that_messages_name_keeps_transposed_arrays(tmp_path):
    # safetensors 0.8.0 does not: it writes them in the order of their memory.
    features = arrays()["features"]
    save_file({"H": features.T}, tmp_path / "f.safetensors")
    np.testing.assert_array_equal(load_file(tmp_path / "f.safetensors")["H"], features.T)


@pytest.mark.parametrize(
    ("name", "message"),
    [("b", "where there is no bias leave b out"), ("features", "np.array(features.tolist())")],
)
def test_python_objects_are_refused_by_name_and_never_unpickled(capsys, tmp_path, name, message):
    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "trap"),)

    trap = np.array(Trap(), object) if name == "b" else np.full((N, D), Trap(), object)
    save(tmp_path / "f.npz", arrays(**{name: trap}))
    for command in ("measure", "certify"):
        err = refused(capsys, command, tmp_path / "f.npz")
        assert f"{name} as Python objects" in err
        assert message in err
    assert not (tmp_path / "trap").exists()
    save(tmp_path / "f.npz", arrays() | {"b": None})
    assert "b as Python objects" in refused(capsys, "measure", tmp_path / "f.npz")


# Files that are none, or claim too much


def archive(path: Path, **changes) -> Path:
    """An .npz in which some members are what `changes` says."""
    save(path, arrays())
    with zipfile.ZipFile(path) as whole:
        members = {name: whole.read(name) for name in whole.namelist()}
    members |= {f"{name}.npy": data for name, data in changes.items()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as made:
        for name, data in members.items():
            made.writestr(name, data)
    return path


def claim(shape, descr="<f8") -> bytes:
    """The header of an .npy file, and nothing behind it."""
    file = io.BytesIO()
    header = {"descr": descr, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
    return file.getvalue()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (claim((10**6, 10**6)), "takes 8000000000000 bytes; the file holds 0 of them"),
        (claim((10**30,)), "takes 8000000000000000000000000000000 bytes"),
        (claim((N, D)) + bytes(8), "takes 384 bytes; the file holds 8 of them"),
        (claim((N, D)) + bytes(8 * N * D + 1), "takes 384 bytes; the file holds 385 of them"),
        (claim((-1, D)), "damaged"),
        (b"nothing of the kind", "no .npz file of plain arrays"),
        (b"", "no .npz file of plain arrays"),
        (claim((N, D), "|V2"), "features of dtype |V2"),
    ],
)
def test_a_header_that_claims_what_is_not_there_is_refused(capsys, tmp_path, data, message):
    archive(tmp_path / "f.npz", features=data)
    for command in ("measure", "probe"):
        assert message in refused(capsys, command, tmp_path / "f.npz")


def test_more_than_the_memory_is_refused_before_it_is_read(capsys, path, monkeypatch):
    save(path, arrays())
    monkeypatch.setattr("ufm.check._machine", lambda: 300)
    # The features alone take 384 bytes; a .safetensors file is read whole.
    for command in ("measure", "certify"):
        err = refused(capsys, command, path)
        assert "needs at least" in err
        assert "Give fewer samples" in err
        assert path.suffix != ".npz" or "features of shape (12, 4)" in err


def test_a_hole_of_eight_terabytes_is_not_read(capsys, tmp_path):
    for name in ("f.safetensors", "f.npz"):
        with open(tmp_path / name, "wb") as file:
            file.truncate(8 * 10**12)
    err = refused(capsys, "measure", tmp_path / "f.safetensors")
    assert "8000000000000 bytes, which needs at least 14,901.2 GiB" in err
    assert "no zip archive" in refused(capsys, "measure", tmp_path / "f.npz")


@pytest.mark.parametrize("command", ["measure", "certify", "probe"])
def test_what_is_no_regular_file_is_refused_and_not_waited_for(capsys, tmp_path, command):
    os.mkfifo(tmp_path / "pipe.npz")
    assert "no regular file" in refused(capsys, command, tmp_path / "pipe.npz")
    (tmp_path / "link.npz").symlink_to("/dev/zero")
    assert "no regular file" in refused(capsys, command, tmp_path / "link.npz")
    (tmp_path / "lost.npz").symlink_to(tmp_path / "nowhere")
    assert "does not exist" in refused(capsys, command, tmp_path / "lost.npz")
    assert "null byte" in refused(capsys, command, "a\0b.npz")
    assert run(capsys, command, "a\0b")[0] == 2
    assert "File name too long" in refused(capsys, command, f"{'x' * 300}.npz")


def test_a_folder_is_no_file_of_features(capsys, tmp_path):
    assert "a folder; allowed: an .npz" in refused(capsys, "measure", tmp_path)


@pytest.mark.parametrize("command", ["measure", "certify", "probe"])
def test_files_of_other_programs_are_called_by_their_names(capsys, tmp_path, command):
    with zipfile.ZipFile(tmp_path / "model.pth", "w") as made:
        made.writestr("model/data.pkl", b"\x80\x02")
    err = refused(capsys, command, tmp_path / "model.pth")
    assert "a file of PyTorch" in err
    assert "fc.weight.detach().cpu().numpy()" in err
    (tmp_path / "old.pt").write_bytes(b"\x80\x02\x8a\nl")
    assert "a pickle" in refused(capsys, command, tmp_path / "old.pt")
    np.save(tmp_path / "W.npy", np.eye(3))
    assert "a single array" in refused(capsys, command, tmp_path / "W.npy")
    (tmp_path / "empty.npz").write_bytes(b"")
    assert "an empty file" in refused(capsys, command, tmp_path / "empty.npz")
    damaged = bytearray(save(tmp_path / "d.npz", arrays()).read_bytes())
    damaged[damaged.index(arrays()["W"].tobytes())] ^= 255
    (tmp_path / "d.npz").write_bytes(damaged)
    assert "Bad CRC-32" in refused(capsys, command, tmp_path / "d.npz")


@pytest.mark.long
def test_an_atlas_is_called_by_its_name(capsys, tmp_path):
    small = ["--K", 2, "--d", 2, "--n", 1, "--lam-W", 1e-2, "--lam-H", 1e-2]
    census = [*small, "--starts", 4, "--rounds", 1]
    assert run(capsys, "census", *census, "--out", tmp_path / "atlas")[0] == 0
    for command in ("certify", "probe", "table"):
        err = refused(capsys, command, tmp_path / "atlas")
        assert "an atlas of `ufm census`; read it with `ufm report`" in err


def test_folders_of_other_commands_are_called_by_their_names(capsys, tmp_path):
    (tmp_path / "verify.json").write_text("{}")
    for command in ("certify", "probe", "table"):
        assert "what `ufm verify` found" in refused(capsys, command, tmp_path)
    with record.open_run(tmp_path / "sweep", "sweep", {}) as handle:
        record.close_run(handle, {}, {})
    err = refused(capsys, "probe", tmp_path / "sweep")
    assert "a run of kind 'sweep'" in err
    assert "`ufm table`" in err
    assert "--classes" in refused(capsys, "certify", tmp_path / "sweep", "--classes", 0, 1)
