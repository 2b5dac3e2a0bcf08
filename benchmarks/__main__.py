"""Run every benchmark, then fill figures and tables: python -m benchmarks [--accelerator]."""

import argparse
import subprocess
import sys

from benchmarks import accelerator, paired

# A process each: some switch float64 on, and memory is counted by process.
BENCHMARKS = (
    "first_result", "memory", "descent_steps", "many", "eigenpairs", "certified", "growth",
)  # fmt: skip
PAGES = ("draw", "pages")


def run(name: str) -> None:
    """One of the modules, as its own command."""
    print(f"— {name}", flush=True)
    subprocess.run([sys.executable, "-m", f"benchmarks.{name}"], check=True, cwd=paired.ROOT)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--accelerator", action="store_true", help="on a GPU or TPU, eight minutes")
    parser.add_argument("--small", action="store_true", help="of that a tiny form on any device")
    given = parser.parse_args()
    if given.small and not given.accelerator:
        parser.error("--small is a form of --accelerator")
    if given.accelerator:
        accelerator.main(given.small)
    for name in () if given.small else ("pages",) if given.accelerator else BENCHMARKS + PAGES:
        run(name)
