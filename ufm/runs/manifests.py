"""The manifest of a run: what it holds, how it begins and resumes, and which files belong to it.

A manifest names the files that count. Others with the names of our own are strays, left by a
process that died, and may be removed; files with any other name are never touched.
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
# What every manifest holds, with the types of what is read from it.
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
    """The manifest of a run that begins."""
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
    """The config and its hash, as a manifest holds them."""
    config = identity["config"]
    return {"config": config, "config_sha256": values.digest(config)}


def same(manifest: Mapping[str, Any], identity: Mapping[str, Any]) -> bool:
    """Whether a manifest is of this run, and not of one that it may grow from."""
    return not values.differences(identity["config"], manifest["config"])


def find(
    folder: Path,
    identity: Mapping[str, Any],
    fits: Callable[[Mapping[str, Any]], bool] | None = None,
) -> dict[str, Any] | None:
    """Read the manifest if the folder holds this run; None if a run can start there.

    fits: whether a run that differs in its config alone is one that this one goes on from.
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
    """Remove the strays of a run that this process holds."""
    storage.discard(folder, strays(folder, manifest) - {storage.LOCK})


def strays(folder: Path, manifest: Mapping[str, Any]) -> set[str]:
    """List those of our own files that the manifest does not name."""
    patterns = storage.PARTIAL, _CHECKPOINT
    return {
        name
        for name in storage.regular(folder) - named(manifest)
        if name in (ARRAYS, storage.LOCK) or any(form.fullmatch(name) for form in patterns)
    }


def named(manifest: Mapping[str, Any]) -> set[str]:
    """The files that a manifest names."""
    return {entry["file"] for entry in (manifest["checkpoint"], manifest["arrays"]) if entry}
