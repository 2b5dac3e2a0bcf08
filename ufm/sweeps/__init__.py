"""Grids of problems and methods, run in compiled batches into one table."""

from ufm.sweeps.grid import Grid, Plan
from ufm.sweeps.histories import history, split
from ufm.sweeps.run import sweep
from ufm.sweeps.tables import grouped

__all__ = ["Grid", "Plan", "grouped", "history", "split", "sweep"]
