"""Descent by any optimiser: `descend`, its result `Run`, and a run as arrays on disk."""

from ufm.descent.columns import host
from ufm.descent.loop import Status
from ufm.descent.run import Run, descend, pack, unpack

__all__ = ["Run", "Status", "descend", "host", "pack", "unpack"]
