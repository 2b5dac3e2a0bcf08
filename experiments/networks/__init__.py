"""Networks on real data, one script a claim: `python -m experiments.networks --quick`."""

import ufm.networks  # noqa: F401  first of all, since it says what to install where that is missing
