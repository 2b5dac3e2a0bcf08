"""`ufm certify`: a rigorous bound on f − f* at the end of a run."""

from dataclasses import dataclass
from pathlib import Path

import tyro

from ufm.certificate import certify
from ufm.commands.shared import show, stored_point


@dataclass(frozen=True)
class Certify:
    """Bound how far a run's last point is from the global minimum, rigorously.

    Example: ufm certify runs/first
    """

    run: tyro.conf.Positional[Path]
    """folder of a run, as `ufm descend --out` leaves it"""
    json: bool = False
    """print JSON for machines instead of a table"""

    def act(self) -> int:
        """Print the certificate of the run's last point."""
        certificate = certify(*stored_point(self.run))._asdict()
        names = {
            "value f (nats)": "value",
            "lower bound on f*": "lower_bound",
            "gap ≥ f − f*": "gap",
            "‖∇f‖": "grad_norm",
            "‖G‖₂/μ (≤ 1 at a global minimum)": "spectral_ratio",
            "resolution of the gap": "resolution",
        }
        rows = {label: certificate[name] for label, name in names.items()}
        show(f"Certificate of {self.run}", rows, tuple(names.values()), self.json)
        return 0
