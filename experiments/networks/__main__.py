"""`python -m experiments.networks [--quick] [--data DIR] [--download] [--only n01] …`."""

import sys

from experiments import runner
from experiments.networks.trainings import AllOptions

sys.exit(runner.main_all(flags=AllOptions, letter="n"))
