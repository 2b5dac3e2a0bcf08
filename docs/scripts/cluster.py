"""A sweep on many machines: each Dask worker is a Slurm job, or a process of this machine."""

import argparse
import shutil

from dask.distributed import Client, LocalCluster

import ufm


def main() -> None:
    """Start the workers, deal the cells to them, keep the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in (("jobs", 2), ("seeds", 1000), ("out", "runs/cluster")):
        parser.add_argument(f"--{name}", type=type(default), default=default)
    args = parser.parse_args()
    if shutil.which("sbatch"):
        from dask_jobqueue import SLURMCluster

        cluster = SLURMCluster(cores=1, processes=1, memory="8GB", walltime="02:00:00")
        cluster.scale(jobs=args.jobs)
    else:
        cluster = LocalCluster(args.jobs, threads_per_worker=1, dashboard_address=None)
    grid = ufm.Grid(K=4, d=[2, 3, 4], n=10, lam=[1e-3, 1e-2], seed=range(args.seeds))
    with cluster, Client(cluster) as client, client.get_executor() as executor:
        table = ufm.sweep(ufm.Plan(grid, steps=2000), args.out, executor=executor)
    print(f"{len(table['cell'])} cells, worst gap {max(table['gap']):.1e}")


if __name__ == "__main__":  # workers that are processes of this machine import this file
    main()
