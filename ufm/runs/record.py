"""Runs on disk: written whole or not at all, verified when read, resumed after an interruption.

A run is a folder:

    manifest.json                what was run, with what, for how long, and every hash
    arrays.npz                   the arrays of a closed run
    checkpoint-<number>-<hash>.npz   the state of an open run; the manifest names the valid one
    .lock, .partial-<random>     a lock and a half-written file; both absent from a closed run

Nothing else in the folder is touched: files with other names, links and folders stay as they are.
Only the files that the manifest names are valid. Every file is written whole or not at all
(`ufm.runs.storage`), and an old one is removed only once the manifest no longer names it. So a
process that dies, at any instruction, leaves its last complete checkpoint.

With several processes (`jax.distributed`) the first one reads and writes the folder. All processes
make the same calls and receive its result, or its exception.

This module is independent of the model. Call `open_run` before computing, `save_checkpoint` in
between and `close_run` at the end; `load_run` reads a run.
"""

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, TextIO

import jax
import numpy as np
from jax.typing import ArrayLike

from ufm.runs import manifests, storage, values
from ufm.runs.sessions import now
from ufm.runs.values import RecordError
from ufm.runtime import leader


@dataclass(frozen=True)
class RunHandle:
    """One session of a run, in the process that has locked its folder.

    `status` is "running", or "complete" if the folder already contained the finished run: then
    there is nothing to compute and nothing can be written. As a context manager it always unlocks
    the folder: a block that ends without `close_run` closes the run as "failed" (by an exception)
    or "interrupted" (by an interrupt, or without an exception), and the run can be resumed.
    """

    path: Path
    status: Literal["running", "complete"]
    lock: TextIO | None = None
    clock: float = 0.0
    wall_before: float = 0.0
    compile_before: float = 0.0

    def __enter__(self) -> "RunHandle":
        return self

    def __exit__(self, *raised: Any) -> None:
        """Close the run unless the block did."""
        if self.lock is None or self.lock.closed:
            return
        try:
            # Alone: after an exception the other processes may be anywhere.
            _close(self, {}, {}, "failed" if isinstance(raised[1], Exception) else "interrupted")
        finally:
            storage.release(self.path, self.lock)


class StoredRun(NamedTuple):
    """A run as read and verified: the manifest, and the final arrays by name."""

    manifest: dict[str, Any]
    arrays: dict[str, np.ndarray]


class Growth(NamedTuple):
    """How this run extends one with another config: to more steps, or to more cells.

    fits: whether it does, from the manifest of the other.
    arrays: from the manifest and the latest arrays of the other to the arrays of the checkpoint
        from which this run starts; empty for none.
    """

    fits: Callable[[Mapping[str, Any]], bool]
    arrays: Callable[[Mapping[str, Any], dict[str, np.ndarray]], Mapping[str, ArrayLike]]


def open_run(
    path: str | os.PathLike[str],
    kind: str,
    config: Mapping[str, Any],
    *,
    seed: int | None = None,
    precision: str | None = None,
    growth: Growth | None = None,
) -> RunHandle:
    """Open a run in the folder `path`, before anything is computed.

    An absent or empty folder starts a new run. An unfinished run of the same kind, config, seed
    and precision is resumed: `load_checkpoint` returns its state, and arrays that an interrupted
    session left are removed. A finished one gives a handle with status "complete". With `growth`,
    a run of another config that fits, finished or not, is extended to this one.
    Precision defaults to JAX's current one ("float32" or "float64").

    Raises RecordError if the folder holds another run (naming the fields that differ), a damaged
    one or foreign files, if another process has it open, if it cannot be written, or if `config`
    is not made of JSON values (0-d arrays count as numbers; NaN and infinities are kept).
    """
    handle: RunHandle | None = None

    def opened() -> tuple[Path, Literal["running", "complete"]]:
        nonlocal handle
        identity = {
            "kind": kind,
            "seed": values.plain(seed, "seed"),
            "precision": precision or jax.numpy.result_type(float).name,
            "config": values.plain(config, "config"),
        }
        handle = _opened(Path(path).absolute(), identity, growth)
        return handle.path, handle.status

    found = leader.told(opened)
    return handle or RunHandle(*found)


def _opened(folder: Path, identity: Mapping[str, Any], growth: Growth | None) -> RunHandle:
    def found() -> tuple[dict[str, Any] | None, bool]:
        """The manifest in the folder, and whether the run is finished."""
        kept = manifests.find(folder, identity, growth.fits if growth else None)
        if kept is None or kept["status"] != "complete":
            return kept, False
        return kept, manifests.same(kept, identity)

    # The folder of a finished run may be read-only: lock it only if its writer left strays.
    kept, ended = found()
    if kept is not None and ended and not manifests.strays(folder, kept):
        return RunHandle(folder, "complete")
    lock = storage.acquire(folder)
    try:
        # Read again: before the folder was locked it could change.
        kept, ended = found()
        if kept is not None and ended:
            manifests.sweep(folder, kept)
            storage.release(folder, lock)
            return RunHandle(folder, "complete")
        if kept is not None and growth and not manifests.same(kept, identity):
            kept = _grown(folder, kept, identity, growth)
        manifest = manifests.fresh(identity) if kept is None else manifests.resumed(kept)
        storage.write_sealed(folder, manifests.FILE, manifest)
        manifests.sweep(folder, manifest)
    except BaseException:
        storage.release(folder, lock)
        raise
    before = manifest["wall_seconds"], manifest["compile_seconds"]
    return RunHandle(folder, "running", lock, time.monotonic(), *before)


def _grown(
    folder: Path, kept: dict[str, Any], identity: Mapping[str, Any], growth: Growth
) -> dict[str, Any]:
    """The manifest of another run with this config, and a checkpoint made of its arrays."""
    entry = kept["checkpoint"] or kept["arrays"]
    stored = {} if entry is None else storage.unpack(folder, entry)
    arrays = growth.arrays(kept, stored)
    number = kept["checkpoint"]["number"] + 1 if kept["checkpoint"] else 1
    kept["checkpoint"] = _written(folder, arrays, number, {}) if arrays else None
    return kept | manifests.configured(identity)


def save_checkpoint(
    handle: RunHandle,
    arrays: Mapping[str, ArrayLike],
    state: Mapping[str, Any],
    *,
    compile_seconds: float | None = None,
) -> None:
    """Replace the run's checkpoint; if the process is killed meanwhile, the former one stays.

    `arrays` may have any shape and any bool, integer, float, complex or string dtype; `state`
    holds JSON values. `compile_seconds` is what this session has spent on compiling so far.

    Raises RecordError if the run is closed, the data cannot be stored, or the disk refuses; the
    former checkpoint then stays valid.
    """
    pieces = {name: leader.whole(x) for name, x in arrays.items()}
    leader.told(lambda: _save(handle, pieces, state, compile_seconds))


def _save(
    handle: RunHandle,
    arrays: Mapping[str, ArrayLike],
    state: Mapping[str, Any],
    compile_seconds: float | None,
) -> None:
    manifest = _open_manifest(handle)
    plain_state = values.plain(state, "state")
    number = manifest["checkpoint"]["number"] + 1 if manifest["checkpoint"] else 1
    manifest["checkpoint"] = _written(handle.path, arrays, number, plain_state)
    _commit(handle, manifest, compile_seconds)


def _written(
    folder: Path, arrays: Mapping[str, ArrayLike], number: int, state: dict[str, Any]
) -> dict[str, Any]:
    """Write the file of a checkpoint and return its entry for the manifest."""
    data, entry = storage.pack(arrays)
    name = f"checkpoint-{number:08d}-{entry['sha256'][:16]}.npz"
    storage.write(folder, name, data)
    return {"file": name, "number": number, **entry, "state": state}


def load_checkpoint(handle: RunHandle) -> tuple[dict[str, np.ndarray], dict[str, Any]] | None:
    """Read the newest checkpoint's arrays and state; None before the first, and after the end.

    Raises RecordError if the checkpoint is missing or fails a hash.
    """

    def read():
        entry = manifests.read(handle.path)["checkpoint"]
        return None if entry is None else (storage.unpack(handle.path, entry), entry["state"])

    return leader.told(read)


def close_run(
    handle: RunHandle,
    arrays: Mapping[str, ArrayLike],
    results: Mapping[str, Any],
    status: Literal["complete", "interrupted", "failed"] = "complete",
    *,
    compile_seconds: float | None = None,
) -> None:
    """Store the final arrays and results and unlock the folder.

    "complete" is final and drops the checkpoint. "interrupted" and "failed" keep it, so that
    `open_run` resumes there. Arrays, results and `compile_seconds` as for `save_checkpoint`.

    Raises RecordError as `save_checkpoint` does; the run then stays open and keeps its checkpoint.
    """
    pieces = {name: leader.whole(x) for name, x in arrays.items()}
    leader.told(lambda: _close(handle, pieces, results, status, compile_seconds))


def _close(
    handle: RunHandle,
    arrays: Mapping[str, ArrayLike],
    results: Mapping[str, Any],
    status: str,
    compile_seconds: float | None = None,
) -> None:
    manifest = _open_manifest(handle)
    if status not in ("complete", "interrupted", "failed"):
        raise RecordError(f"status {status!r}: use 'complete', 'interrupted' or 'failed'")
    manifest["results"] = values.plain(results, "results")
    data, entry = storage.pack(arrays)
    storage.write(handle.path, manifests.ARRAYS, data)
    manifest |= {"status": status, "finished": now(), "arrays": {"file": manifests.ARRAYS, **entry}}
    if status == "complete":
        manifest["checkpoint"] = None
    _commit(handle, manifest, compile_seconds)
    if handle.lock is not None:
        storage.release(handle.path, handle.lock)


def load_run(path: str | os.PathLike[str]) -> StoredRun:
    """Read a run and verify every hash; check `manifest["status"]` before using it.

    A run that is still running has no arrays. Raises RecordError if there is no run, or if the
    manifest or the arrays are missing, truncated, edited or damaged, or of another format version.
    """
    folder = Path(path).absolute()
    manifest = manifests.read(folder)
    entry = manifest["arrays"]
    return StoredRun(manifest, {} if entry is None else storage.unpack(folder, entry))


def load_latest(path: str | os.PathLike[str]) -> StoredRun:
    """Like `load_run`, with the arrays of the last checkpoint where the run is not finished.

    Works while another process writes: if a checkpoint is replaced meanwhile, the new one is read.
    """
    folder = Path(path).absolute()
    for left in (2, 1, 0):
        manifest = manifests.read(folder)
        entry = manifest["checkpoint"] or manifest["arrays"]
        try:
            return StoredRun(manifest, {} if entry is None else storage.unpack(folder, entry))
        except RecordError:
            if left == 0 or manifests.read(folder) == manifest:
                raise
    raise AssertionError


def remove_run(path: str | os.PathLike[str], kind: str) -> None:
    """Remove the files of a run of the given kind, if the folder holds one, and no others.

    Raises RecordError, and removes nothing, if the folder holds a run of another kind, a damaged
    one, other files besides, or if another process has it open.
    """

    def removed() -> None:
        folder = Path(path).absolute()
        if not os.path.lexists(folder / manifests.FILE):
            return
        lock = storage.acquire(folder)
        try:
            manifest = manifests.read(folder)
            if manifest["kind"] != kind:
                raise RecordError(
                    f"{folder} holds a run of kind {manifest['kind']!r}, not {kind!r}, and is not "
                    "replaced: remove it yourself, or move it"
                )
            ours = manifests.named(manifest) | manifests.strays(folder, manifest)
            if foreign := sorted(storage.listing(folder) - ours - {manifests.FILE}):
                raise RecordError(
                    f"{folder} holds other files ({', '.join(foreign[:3])}) beside a run that is "
                    "to be replaced: move them elsewhere"
                )
            # The manifest last: a process that dies here leaves a run that can be removed.
            own = (ours & storage.regular(folder)) - {storage.LOCK}
            storage.discard(folder, [*own, manifests.FILE])
        finally:
            storage.release(folder, lock)

    leader.told(removed)


def _open_manifest(handle: RunHandle) -> dict[str, Any]:
    if handle.lock is None or handle.lock.closed:
        raise RecordError(
            f"the run in {handle.path} is closed and is not overwritten: "
            "open it again with open_run, or choose another folder"
        )
    return manifests.read(handle.path)


def _commit(handle: RunHandle, manifest: dict[str, Any], compile_seconds: float | None) -> None:
    """Write the manifest with the time spent so far, then remove what it no longer names."""
    manifest["wall_seconds"] = handle.wall_before + time.monotonic() - handle.clock
    if compile_seconds is not None:
        manifest["compile_seconds"] = handle.compile_before + float(compile_seconds)
    storage.write_sealed(handle.path, manifests.FILE, manifest)
    manifests.sweep(handle.path, manifest)
