"""A census on disk, to which later sessions add orbits and hits.

    atlas.json              problem, table of orbits, starts by source, one entry a session
    orbits-<hash>.npz       W, H, b of the representatives, stacked

Both are written atomically, the arrays first and the manifest that names them last
(`ufm.runs.storage`), so a killed session leaves the atlas of its last finished round.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_type_hints

import jax
import numpy as np

from ufm.critical.orbits import Orbit
from ufm.critical.search import Census
from ufm.model.problem import Params, Problem
from ufm.runs import storage, values
from ufm.runs.sessions import session
from ufm.runs.values import RecordError

FORMAT, VERSION, _MANIFEST = "ufm-atlas", 1, "atlas.json"
_ORBITS = re.compile(r"orbits-[0-9a-f]{16}\.npz")
_NUMBER = (int, float)
# What is read from a manifest, with its types.
_TYPES: dict[Any, Any] = {int: int, float: _NUMBER, str: str}
_ORBIT = {name: _TYPES[kind] for name, kind in get_type_hints(Orbit).items() if kind in _TYPES} | {
    "groups": [int],
    "hits": {str: int},
}
_FORM = {
    "problem": Mapping,
    "sessions": [Mapping],
    "tried": {str: int},
    "refused": {str: int},
    "orbits": [_ORBIT],
    "arrays": storage.entry_form(_ORBITS),
}


class Atlas:
    """An open atlas, locked by this process.

    census: what it holds, None before the first `save`.
    sessions: one entry for each session, this one included.
    """

    def __init__(self, folder: Path, census: Census | None, sessions: list[dict[str, Any]]):
        self.folder, self.census, self.sessions = folder, census, sessions

    def save(self, census: Census) -> None:
        """Write a census, then remove the files of the former one; nothing without an orbit."""
        if not census.orbits:
            return
        self.census = census
        points = jax.tree.map(lambda *x: np.stack(x), *(orbit.params for orbit in census.orbits))
        data, entry = storage.pack(points._asdict())
        entry["file"] = f"orbits-{entry['sha256'][:16]}.npz"
        storage.write(self.folder, entry["file"], data)
        manifest = {
            "format": FORMAT,
            "version": VERSION,
            "problem": census.problem.describe(),
            "sessions": self.sessions,
            "tried": census.tried,
            "refused": census.refused,
            "orbits": [table_row(orbit) for orbit in census.orbits],
            "arrays": entry,
        }
        storage.write_sealed(self.folder, _MANIFEST, values.plain(manifest, "atlas"))
        storage.discard(self.folder, _ours(self.folder) - {entry["file"]})


def _ours(folder: Path) -> set[str]:
    """The files of the folder that belong to an atlas, half-written ones included."""
    patterns = _ORBITS, storage.PARTIAL
    return {x for x in storage.regular(folder) if any(form.fullmatch(x) for form in patterns)}


def table_row(orbit: Orbit) -> dict[str, Any]:
    """An orbit without its representative, as JSON holds it."""
    row = orbit._asdict()
    del row["params"]
    return row | {"groups": list(orbit.groups)}


def load(folder: Path) -> tuple[Census, list[dict[str, Any]]]:
    """(census, sessions) of the atlas in a folder.

    Raises:
        RecordError: there is no atlas, or a file was damaged or edited.
    """
    file = folder / _MANIFEST
    manifest = storage.read_sealed(file, FORMAT, VERSION)
    values.expect(manifest, _FORM, f"{file}")
    arrays = storage.unpack(folder, manifest["arrays"])
    problem = Problem.from_description(manifest["problem"], f"{file}: problem")
    m, K = len(manifest["orbits"]), problem.K
    rank = arrays["W"].shape[-1] if "W" in arrays and arrays["W"].ndim == 3 else 0
    shapes = {"W": (m, K, rank), "H": (m, rank, problem.groups), "b": (m, K)}
    if {name: x.shape for name, x in arrays.items()} != shapes or not m:
        raise RecordError(f"{file} lists other orbits than {manifest['arrays']['file']} holds")
    if not manifest["sessions"]:
        raise RecordError(f"{file} lists no session: {values.MEND}")
    found = tuple(
        Orbit(
            params=Params(*(arrays[name][i] for name in "WHb")),
            **{name: row[name] for name in _ORBIT} | {"groups": tuple(row["groups"])},
        )
        for i, row in enumerate(manifest["orbits"])
    )
    return Census(problem, found, manifest["tried"], manifest["refused"]), manifest["sessions"]


@contextmanager
def opened(folder: Path, problem: Problem, options: dict[str, Any]) -> Iterator[Atlas]:
    """Open the atlas in a folder, created if absent, and lock it until the block ends.

    Args:
        folder: of the atlas.
        problem: whose critical points it lists.
        options: of this session, stored with its command, versions and commit.

    Raises:
        RecordError: an atlas of another problem, a folder that holds other files, a damaged
            file, or a folder in use.
    """
    lock = storage.acquire(folder)
    try:
        names = storage.listing(folder)
        census: Census | None = None
        sessions: list[dict[str, Any]] = []
        if _MANIFEST in names:
            census, sessions = load(folder)
            if census.problem.describe() != problem.describe():
                fields = values.differences(problem.describe(), census.problem.describe())
                raise RecordError(
                    f"{folder} holds the atlas of another problem ({'; '.join(fields)}): choose "
                    "another folder, or the same problem"
                )
        elif foreign := sorted(names - _ours(folder) - {storage.LOCK}):
            raise RecordError(
                f"{folder} holds files that are no atlas ({', '.join(foreign[:4])}): "
                "choose an empty or a new folder"
            )
        yield Atlas(folder, census, [*sessions, session() | {"options": options}])
    finally:
        storage.release(folder, lock)
