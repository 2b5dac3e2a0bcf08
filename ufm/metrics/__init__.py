"""NC1–NC4 and kin of any features, and the labels and features that they take."""

from ufm.metrics.measures import Collapse, collapse

__all__ = ["Collapse", "collapse"]
