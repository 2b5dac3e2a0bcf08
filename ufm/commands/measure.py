"""`ufm measure`: NC1–NC4 of the features of any network."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro

from ufm import metrics
from ufm.commands.shared import arrays_of, show

REQUIRED = {"W": "(K, d)", "H": "(d, N)", "labels": "(N,); and b (K,) if there is a bias"}


@dataclass(frozen=True)
class Measure:
    """Measure NC1-NC4 on features of any network, from an .npz or a .safetensors file.

    The file holds W (K, d), H (d, N) with samples as columns, labels (N,) and, if there is one,
    b (K,). From PyTorch: np.savez("features.npz", W=fc.weight.detach().numpy(),
    b=fc.bias.detach().numpy(), H=features.T, labels=labels). Example: ufm measure features.npz
    """

    features: tyro.conf.Positional[Path]
    """the .npz or .safetensors file"""
    json: bool = False
    """print JSON for machines instead of a table"""

    def act(self) -> int:
        """Print the metrics of the file."""
        arrays = arrays_of(self.features, REQUIRED)
        collapse = metrics.collapse(
            arrays["W"], arrays["H"], arrays.get("b", np.zeros(len(arrays["W"]))), arrays["labels"]
        )
        rows = collapse._asdict()
        show(f"Neural collapse of {self.features}", rows, tuple(rows), self.json)
        return 0
