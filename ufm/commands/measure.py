"""`ufm measure`: NC1–NC4 of the features of any network."""

from dataclasses import dataclass
from pathlib import Path

import tyro

from ufm.commands.files import arrays_of
from ufm.commands.shared import named, show
from ufm.metrics import measures as metrics
from ufm.metrics.features import columns, numbers


@dataclass(frozen=True)
class Measure:
    """Measure NC1-NC4 on features of any network, from an .npz or a .safetensors file.

    The file holds W (K, d), features (N, d) with samples as rows, labels (N,) and, if there is one,
    b (K,). H (d, N), samples as columns, may stand for features. Labels 0 … K−1 are rows of W;
    others need --classes. From PyTorch: np.savez("features.npz", W=fc.weight.detach().numpy(),
    b=fc.bias.detach().numpy(), features=features.numpy(), labels=labels.numpy()).

    Example: ufm measure features.npz --ignore -100
    """

    features: tyro.conf.Positional[Path]
    """the .npz or .safetensors file"""
    classes: tuple[str, ...] = ()
    """the K labels in the order of the rows of W, where they are not 0 … K−1"""
    ignore: tuple[str, ...] = ()
    """labels of samples to leave out"""
    json: bool = False
    """print JSON for machines instead of a table; infinite numbers as null"""

    def act(self) -> int:
        """Print the metrics of the file."""
        arrays = arrays_of(self.features, ("labels",))
        W, labels = numbers("W", arrays["W"]), arrays["labels"]
        H = columns(W, arrays.get("H"), arrays.get("features"))
        options = named(labels, self.classes, self.ignore)
        collapse = metrics.collapse(W, H, arrays.get("b"), labels, **options)
        rows = collapse._asdict()
        show(f"Neural collapse of {self.features}", rows, tuple(rows), self.json)
        return 0
