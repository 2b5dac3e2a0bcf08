"""Run every benchmark: python -m benchmarks."""

from benchmarks import descent_steps

if __name__ == "__main__":
    descent_steps.main()
