"""`ufm certify`: an upper bound on f − f* at a point."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from ufm.certificate import certify
from ufm.commands.shared import Compiling, show, stored_point


@dataclass(frozen=True)
class Certify(Compiling):
    """Compute an upper bound on the distance of f at a point from the global minimum.

    The bound comes from duality, in float64: it holds up to rounding, which `resolution` estimates.
    The point is the end of a run or a file, as for ufm probe.

    Example: ufm certify runs/first
    """

    point: tyro.conf.Positional[Path]
    """folder of a run, as `ufm descend --out` leaves it, or an .npz or .safetensors file"""
    classes: tuple[str, ...] = ()
    """for a file: its K labels in the order of the rows of W, if they are not 0 … K−1"""
    ignore: tuple[str, ...] = ()
    """for a file: the labels of samples to leave out"""
    loss: str = ""
    """for a file: the loss, as `ufm descend --loss` takes it; a run stores its own"""
    features: Literal["", "free", "nonnegative", "sphere"] = ""
    """for a file: free, nonnegative (H behind a ReLU), sphere (unit rows and features)"""
    json: bool = False
    """print JSON for machines instead of a table; infinite numbers as null"""

    def act(self) -> int:
        """Print the certificate of the point."""
        point = stored_point(self.point, self.classes, self.ignore, self.loss, self.features)
        certificate = certify(*point)._asdict()
        names = {
            "value f (nats)": "value",
            "lower bound on f*": "lower_bound",
            "gap ≥ f − f*": "gap",
            "‖∇f‖": "grad_norm",
            "‖G‖₂/μ (≤ 1 at a global minimum)": "spectral_ratio",
            "resolution of the gap": "resolution",
        }
        rows = {label: certificate[name] for label, name in names.items()}
        show(f"Certificate of {self.point}", rows, tuple(names.values()), self.json)
        return 0
