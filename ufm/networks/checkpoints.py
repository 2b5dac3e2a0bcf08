"""One checkpoint of a training, written by orbax and replaced as the training proceeds.

The state is stored as arrays, the records so far as JSON, which represents every float64 exactly.
orbax writes a new checkpoint next to the old one and renames it, so that the old one is intact if
the process is killed while it writes.
"""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from ufm.check import Refused


class Store:
    """The checkpoint of one training in one folder.

    Args:
        folder: created if it does not exist.
        identity: JSON values that identify the training.
    """

    def __init__(self, folder: str | os.PathLike[str], **identity: Any):
        options = ocp.CheckpointManagerOptions(max_to_keep=1, enable_async_checkpointing=False)
        # In the form in which they are read back, with lists for tuples.
        self.folder, self.identity = Path(folder).absolute(), json.loads(json.dumps(identity))
        self.manager = ocp.CheckpointManager(self.folder, options=options)

    def resume(self, fresh: Any) -> tuple[int, Any, list[dict[str, Any]]]:
        """(epoch, state, records) of the checkpoint, or (0, fresh, []) if there is none.

        Raises:
            Refused: the folder holds another training, naming what differs.
        """
        epoch = self.manager.latest_step()
        if epoch is None:
            return 0, fresh, []
        notes = self.manager.restore(epoch, args=ocp.args.Composite(notes=ocp.args.JsonRestore()))
        stored = notes["notes"]["identity"]
        if stored != self.identity:
            differing = [key for key, value in self.identity.items() if stored.get(key) != value]
            raise Refused(
                f"{self.folder} holds another training: {', '.join(differing)} differ. Choose "
                "another folder, or remove this one"
            )
        leaves, structure = jax.tree.flatten(fresh)
        shapes = [jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding) for x in leaves]
        arrays = ocp.args.Composite(state=ocp.args.StandardRestore(shapes))
        state = jax.tree.unflatten(structure, self.manager.restore(epoch, args=arrays)["state"])
        return epoch, state, notes["notes"]["records"]

    def save(self, epoch: int, state: Any, records: list[dict[str, Any]]) -> None:
        """Replace the checkpoint by the state at the end of an epoch and the records so far."""
        notes = {"identity": self.identity, "records": records}
        self.manager.save(
            epoch,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(jax.tree.leaves(state)),
                notes=ocp.args.JsonSave(notes),
            ),
        )

    def close(self) -> None:
        """Wait until orbax has written everything, and end its threads."""
        self.manager.close()


def digest(tree: Any) -> str:
    """SHA-256 of the shapes, dtypes and bytes of all arrays of a tree."""
    total = hashlib.sha256()
    for leaf in jax.tree.leaves(tree):
        array = np.asarray(leaf)
        total.update(f"{array.shape} {array.dtype}".encode())
        total.update(np.ascontiguousarray(array).tobytes())
    return total.hexdigest()
