"""Run every benchmark: python -m benchmarks."""

from benchmarks import certified, descent_steps, draw, eigenpairs, growth, many

if __name__ == "__main__":
    # In this order: the last three switch float64 on.
    for benchmark in (descent_steps, many, eigenpairs, certified, growth):
        benchmark.main()
    draw.main()
