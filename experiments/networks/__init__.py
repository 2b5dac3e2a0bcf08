"""Networks on real data, one script per claim: `python -m experiments.networks --quick`."""

import sys

try:
    import ufm.networks  # noqa: F401  first of all, since it says what to install
except ImportError as error:
    print(error, file=sys.stderr)
    raise SystemExit(2) from None
