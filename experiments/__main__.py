"""`python -m experiments [--quick] [--only c01 c02] [--force] [--redraw]`."""

import sys

from experiments.runner import main_all

sys.exit(main_all())
