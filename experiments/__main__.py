"""`python -m experiments [--quick] [--only c01 c02] [--paper 2203.01238] [--list] [--redraw]`."""

import sys

from experiments.runner import main_all

sys.exit(main_all())
