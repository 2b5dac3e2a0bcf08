"""The manifest of a run: its fields, its changes when a run starts and resumes, and its files.

A manifest names the valid files of its run. Other files with names that ufm gives are strays, left
by a process that died, and may be removed; files with any other name are never touched.
"""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ufm.runs import storage, values
from ufm.runs.sessions import session
from ufm.runs.values import RecordError

FORMAT = "ufm-run"
VERSION = 1
FILE = "manifest.json"
ARRAYS = "arrays.npz"
_CHECKPOINT = re.compile(r"checkpoint-\d{8,}-[0-9a-f]{16}\.npz")
_ENTRY = storage.entry_form(re.compile(re.escape(ARRAYS)))
# The fields of every manifest, with the types of those that are read.
_FORM: dict[str, Any] = {
    "kind": str,
    "seed": object,
    "precision": str,
    "config": Mapping,
    "config_sha256": str,
    "status": re.compile("running|complete|interrupted|failed"),
    "resumed": list,
    "wall_seconds": (int, float),
    "compile_seconds": (int, float),
    "checkpoint": object,
    "arrays": object,
    "results": Mapping,
}
_CHECKPOINT_FORM = storage.entry_form(_CHECKPOINT) | {"number": int, "state": Mapping}


def fresh(identity: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest of a new run."""
    return {
        "format": FORMAT,
        "version": VERSION,
        **identity,
        **configured(identity),
        "status": "running",
        **session(),
        "resumed": [],
        "finished": None,
        "wall_seconds": 0.0,
        "compile_seconds": 0.0,
        "checkpoint": None,
        "arrays": None,
        "results": {},
    }


def resumed(kept: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest of a run that resumes."""
    # The first session's environment stays at the top; later ones are listed after it.
    sessions = [*kept["resumed"], session()]
    empty: dict[str, Any] = {"status": "running", "finished": None, "arrays": None, "results": {}}
    return {**kept, **empty, "resumed": sessions}


def configured(identity: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a manifest for a config: the config and its hash."""
    config = identity["config"]
    return {"config": config, "config_sha256": values.digest(config)}


def same(manifest: Mapping[str, Any], identity: Mapping[str, Any]) -> bool:
    """Whether the config of a manifest is that of this run, and not one that this run extends."""
    return not values.differences(identity["config"], manifest["config"])


def find(
    folder: Path,
    identity: Mapping[str, Any],
    fits: Callable[[Mapping[str, Any]], bool] | None = None,
) -> dict[str, Any] | None:
    """Read the manifest if the folder holds this run; None if a new run can start there.

    Args:
        folder: of the run.
        identity: kind, seed, precision and config of this run.
        fits: whether this run extends one that differs only in its config, from its manifest.

    Raises:
        RecordError: another run, naming the fields that differ; a damaged one; foreign files.
    """
    names = storage.listing(folder)
    if FILE not in names:
        partial = {x for x in storage.regular(folder) if storage.PARTIAL.fullmatch(x)}
        if foreign := sorted(names - partial - {storage.LOCK}):
            raise RecordError(
                f"{folder} holds other files ({', '.join(foreign[:3])}) and no {FILE}: "
                "choose an empty or a new folder"
            )
        return None
    manifest = read(folder)
    differing = values.differences(identity, {name: manifest[name] for name in identity})
    fit = fits is not None and all(x.startswith("config.") for x in differing)
    if differing and not (fit and fits is not None and fits(manifest)):
        raise RecordError(
            f"{folder} holds another run; these fields differ:\n  "
            + "\n  ".join(differing)
            + "\nChoose another folder, or remove this one."
        )
    return manifest


def read(folder: Path) -> dict[str, Any]:
    """Read and verify the manifest of a folder, or raise RecordError."""
    file = folder / FILE
    manifest = storage.read_sealed(file, FORMAT, VERSION)
    values.expect(manifest, _FORM, f"{file}")
    for name, form in (("arrays", _ENTRY), ("checkpoint", _CHECKPOINT_FORM)):
        if manifest[name] is not None:
            values.expect(manifest[name], form, f"{file}: {name}")
    if manifest["config_sha256"] != values.digest(manifest["config"]):
        raise RecordError(f"{file} was edited or damaged (its hash differs): {values.MEND}")
    return manifest


def sweep(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Remove the strays of a run that this process has locked."""
    storage.discard(folder, strays(folder, manifest) - {storage.LOCK})


def strays(folder: Path, manifest: Mapping[str, Any]) -> set[str]:
    """The files with names that ufm gives which the manifest does not name."""
    patterns = storage.PARTIAL, _CHECKPOINT
    return {
        name
        for name in storage.regular(folder) - named(manifest)
        if name in (ARRAYS, storage.LOCK) or any(form.fullmatch(name) for form in patterns)
    }


def named(manifest: Mapping[str, Any]) -> set[str]:
    """The files that a manifest names."""
    return {entry["file"] for entry in (manifest["checkpoint"], manifest["arrays"]) if entry}
