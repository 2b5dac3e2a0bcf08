"""Run every benchmark: python -m benchmarks."""

from benchmarks import descent_steps, eigenpairs

if __name__ == "__main__":
    descent_steps.main()
    eigenpairs.main()
