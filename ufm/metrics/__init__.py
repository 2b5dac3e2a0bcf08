"""NC1–NC4 and related measures of any features, and the labels that they take."""

from ufm.metrics.alignment import Alignment, Geometry, alignment, geometry
from ufm.metrics.generalised import Generalised, generalised, one_vs_rest, ood_cosines
from ufm.metrics.measures import collapse
from ufm.metrics.rank import effective_rank
from ufm.metrics.regression import RegressionCollapse, regression
from ufm.metrics.result import Collapse, Detail
from ufm.metrics.streaming import Accumulator, detail

__all__ = [
    "Accumulator",
    "Alignment",
    "Collapse",
    "Detail",
    "Generalised",
    "Geometry",
    "RegressionCollapse",
    "alignment",
    "collapse",
    "detail",
    "effective_rank",
    "generalised",
    "geometry",
    "one_vs_rest",
    "ood_cosines",
    "regression",
]
