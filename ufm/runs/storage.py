"""Atomic writes, arrays in files that are verified by hashes, and locks of folders.

A file is written under a temporary name in its folder, flushed to the disk and renamed. Arrays are
stored in npz files whose bytes depend only on the arrays. A folder is locked by a file that the
kernel unlocks when the process ends.

This module is independent of runs; `ufm.record` builds them on it.
"""

import contextlib
import fcntl
import hashlib
import io
import json
import os
import re
import secrets
import stat
import time
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from jax.typing import ArrayLike

from ufm.runs.values import MEND, RecordError, canonical, digest

LOCK = ".lock"  # present while a process has locked the folder
# A file being written, under a unique name; left behind only by a process that died meanwhile.
PARTIAL = re.compile(r"\.partial(-[0-9a-f]{16})?")

_ARRAY_NAME = re.compile(r"[\w./-]+")


# Arrays


def pack(arrays: Mapping[str, ArrayLike]) -> tuple[bytes, dict[str, Any]]:
    """(the bytes of an npz file, their entry for a manifest); equal arrays give equal bytes.

    The entry has the hash of the bytes, and each array's dtype, shape and hash. Raises RecordError
    for a name or a dtype that `unpack` could not restore.
    """
    entries = {}
    buffer = io.BytesIO()
    # Not numpy.savez: it takes names as keywords, and stamps the time into the file.
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, value in arrays.items():
            array = _storable(name, value)
            entries[name] = _array_entry(array)
            with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, allow_pickle=False)
    data = buffer.getvalue()
    return data, {"sha256": hashlib.sha256(data).hexdigest(), "arrays": entries}


def unpack(folder: Path, entry: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Read the arrays of the file that `entry` names; raise RecordError if any hash fails.

    `entry` is as `pack` made it, with the file's name under "file". Nothing is unpickled.
    """
    file = folder / entry["file"]
    data = _read(file)
    if hashlib.sha256(data).hexdigest() != entry["sha256"]:
        raise RecordError(f"{file} is not the file that its manifest describes: {MEND}")
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (ValueError, OSError, zipfile.BadZipFile) as error:
        raise RecordError(f"{file} is not an npz of plain arrays ({error}): {MEND}") from error
    found = {name: _array_entry(array) for name, array in arrays.items()}
    for name in sorted(found.keys() | entry["arrays"].keys()):
        if found.get(name) != entry["arrays"].get(name):
            raise RecordError(f"{file}: array {name!r} fails its hash: {MEND}")
    return arrays


def _array_entry(array: np.ndarray) -> dict[str, Any]:
    """The entry of an array: dtype, shape, and the hash of both and of the row-major bytes."""
    head = {"dtype": array.dtype.str, "shape": list(array.shape)}
    hashed = hashlib.sha256(canonical(head))
    hashed.update(array.tobytes())
    return {**head, "sha256": hashed.hexdigest()}


def _storable(name: str, value: ArrayLike) -> np.ndarray:
    if not _ARRAY_NAME.fullmatch(name):
        raise RecordError(f"array name {name!r}: use letters, digits and any of _ . / -")
    try:
        array = np.asarray(value)
    except (TypeError, ValueError) as error:
        raise RecordError(f"array {name!r} cannot be stored: {error}") from error
    # Long doubles carry undefined padding, extension types such as bfloat16 lose their name.
    if array.dtype.kind not in "biufcSU" or array.dtype.char in "gG":
        raise RecordError(
            f"array {name!r} has dtype {array.dtype}: convert it to a bool, an integer, "
            "a float or complex of at most 64 bits a part, or a string"
        )
    return array


def entry_form(name: re.Pattern[str]) -> dict[str, Any]:
    """The form of an entry by `pack`, for `values.expect`, with the names that a file may have."""
    return {"file": name, "sha256": str, "arrays": Mapping}


# Files


def write(folder: Path, name: str, data: bytes) -> None:
    """Write a file into the folder, atomically and durably.

    An existing file of that name stays until it is replaced; a link of that name is replaced, not
    followed. A process that dies meanwhile leaves at most one more file, with a name like PARTIAL.
    Raises RecordError if the file cannot be written.
    """
    partial = folder / f".partial-{secrets.token_hex(8)}"
    with _explained(f"write {folder / name}"):
        # O_EXCL: an existing file or link is not ours.
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        try:
            with open(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, folder / name)
            _sync(folder)
        except OSError:
            # On a full disk the half-written file would take the space that the next attempt needs.
            partial.unlink(missing_ok=True)
            raise


def check_replaceable(path: Path, mark: bytes, what: str) -> None:
    """Refuse to overwrite anything but a file that contains the mark.

    Args:
        path: where a file is to be written.
        mark: bytes that files written by this command contain, and hardly any others.
        what: such a file in words, for the message.

    Raises:
        RecordError: the path is a link, a folder, or a file without the mark.
    """
    if not os.path.lexists(path):
        return
    if path.is_symlink() or not path.is_file() or mark not in _read(path):
        raise RecordError(
            f"got {path}, which exists and is not {what}; allowed: a new file, or one that is"
        )


def write_sealed(folder: Path, name: str, value: Mapping[str, Any]) -> None:
    """Write a JSON object by `write`, with its `digest` added under "sha256"."""
    text = json.dumps({**value, "sha256": digest(value)}, indent=2)
    write(folder, name, f"{text}\n".encode())


def read_sealed(file: Path, form: str, version: int) -> dict[str, Any]:
    """Read what `write_sealed` wrote, without its "sha256".

    Raises RecordError if the file cannot be read, is not a JSON object, has another "format" or
    "version" than `form` and `version`, or does not match its hash.
    """
    if not os.path.isfile(file):
        raise RecordError(f"{file.parent} holds no run (no {file.name} to read): check the path")
    data = _read(file)
    try:
        value: dict[str, Any] = json.loads(data)
        own = value.pop("sha256", None)
    except (ValueError, AttributeError, TypeError, RecursionError) as error:
        raise RecordError(f"{file} is damaged (not a JSON object): {MEND}") from error
    # The format before the hash: another version may hash in another way.
    if value.get("format") != form:
        raise RecordError(f"{file} is not the manifest of a run, or is damaged: {MEND}")
    if value.get("version") != version:
        raise RecordError(
            f"{file} has format version {value.get('version')}, this ufm reads {version}: "
            "update ufm, or run again in another folder"
        )
    if own != digest(value):
        raise RecordError(f"{file} was edited or damaged (its hash differs): {MEND}")
    return value


def listing(folder: Path) -> set[str]:
    """Names of all entries of the folder, none if absent; RecordError if it cannot be read."""
    with _explained(f"look into {folder}"):
        return set(os.listdir(folder)) if folder.is_dir() else set()


def regular(folder: Path) -> set[str]:
    """Names of the regular files of the folder: no links, folders or devices."""
    with _explained(f"look into {folder}"):
        entries = os.scandir(folder) if folder.is_dir() else ()
        return {entry.name for entry in entries if entry.is_file(follow_symlinks=False)}


def discard(folder: Path, names: Iterable[str]) -> None:
    """Remove files of the folder; raise RecordError if one cannot be removed."""
    with _explained(f"tidy {folder}"):
        for name in names:
            os.unlink(folder / name)


@contextlib.contextmanager
def _explained(action: str) -> Iterator[None]:
    try:
        yield
    except RecordError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a null character in the path
        raise RecordError(
            f"could not {action}: {getattr(error, 'strerror', None) or error}; "
            "choose a folder that can be created and written, on a disk with space"
        ) from error


def _read(file: Path) -> bytes:
    try:
        if file.exists() and not file.is_file():
            raise RecordError(f"{file} is no regular file: {MEND}")
        return file.read_bytes()
    except OSError as error:
        raise RecordError(f"{file} cannot be read ({error.strerror}): {MEND}") from error


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# The lock of a folder


def acquire(folder: Path) -> TextIO:
    """Lock the folder, created if absent; the kernel unlocks it however the process ends.

    The lock is an open file, for `release`. Raises RecordError if another process, or another
    handle of this one, has it, or if the folder or the file cannot be created.
    """
    with _explained(f"open a run in {folder}"):
        if not folder.is_dir():
            folder.mkdir(parents=True, exist_ok=True)
            _sync(folder.parent)
        return _claim(folder)


def release(folder: Path, lock: TextIO) -> None:
    """Unlock the folder and remove the lock's file; a second call does nothing."""
    if not lock.closed:
        # Removed while it is still locked: afterwards it could be that of another process.
        with contextlib.suppress(OSError):
            os.unlink(folder / LOCK)
        lock.close()


def _claim(folder: Path) -> TextIO:
    path = folder / LOCK
    # A child that a killed process had just forked keeps the lock until it calls exec.
    patience = time.monotonic() + 1.0
    while True:
        lock = _opened(path)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The former holder may have removed the file between our opening and locking it.
            if path.exists() and os.path.samestat(os.fstat(lock.fileno()), os.stat(path)):
                lock.truncate(0)
                lock.write(f"{os.getpid()}\n")
                lock.flush()
                return lock
        except BlockingIOError:
            if time.monotonic() < patience:
                lock.close()
                time.sleep(0.02)
                continue
            lock.seek(0)
            holder = lock.read().strip() or "unknown"
            lock.close()
            raise RecordError(
                f"{folder} is open in another process (or handle); process {holder}: "
                "wait for it, stop it, or choose another folder"
            ) from None
        except BaseException:
            lock.close()
            raise
        lock.close()


def _opened(path: Path) -> TextIO:
    """The file of a lock, created if absent; RecordError if it is anything else."""
    flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK
    foreign = RecordError(
        f"{path} is no lock that ufm made (a link, or a file with other contents): "
        "remove it, or choose another folder"
    )
    try:
        descriptor = os.open(path, flags, 0o666)
    except OSError:
        if path.is_symlink():
            raise foreign from None
        raise
    info = os.fstat(descriptor)
    # The former holder may have removed it just now: then it has no name left.
    if (
        not stat.S_ISREG(info.st_mode)
        or info.st_nlink > 1
        or not re.fullmatch(rb"\d{0,20}\n?", os.pread(descriptor, 32, 0))
    ):
        os.close(descriptor)
        raise foreign
    return open(descriptor, "a+")
