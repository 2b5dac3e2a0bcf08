"""`python -m experiments.networks [--quick] [--data DIR] [--download] [--only n01] …`."""

import sys

from experiments import runner

try:
    from experiments.networks.trainings import AllOptions
except ImportError as error:  # the extra is not installed
    sys.exit(f"experiments.networks: {error}")

sys.exit(runner.main_all(flags=AllOptions, letter="n"))
