"""One checkpoint of a training, written by orbax and replaced as the training proceeds.

The state is stored as arrays, the records so far as JSON (which gives every float64 back exactly).
orbax writes a checkpoint beside the former one and renames it into place, so that a process killed
while it writes leaves the former one intact.
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
        folder: made if it is not there.
        identity: JSON values that two trainings share only if they are the same.
    """

    def __init__(self, folder: str | os.PathLike[str], **identity: Any):
        options = ocp.CheckpointManagerOptions(max_to_keep=1, enable_async_checkpointing=False)
        # As they are read back: a tuple becomes a list.
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
        kept = notes["notes"]["identity"]
        if kept != self.identity:
            differing = [key for key, value in self.identity.items() if kept.get(key) != value]
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
        """Wait until orbax has written, and end its threads."""
        self.manager.close()


def digest(tree: Any) -> str:
    """SHA-256 of all arrays of a tree: their shapes and bytes."""
    total = hashlib.sha256()
    for leaf in jax.tree.leaves(tree):
        array = np.asarray(leaf)
        total.update(f"{array.shape} {array.dtype}".encode())
        total.update(np.ascontiguousarray(array).tobytes())
    return total.hexdigest()
