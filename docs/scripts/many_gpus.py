"""One large problem over all GPUs of a machine, or of a Slurm job."""

import argparse
import os

import jax

import ufm

parser = argparse.ArgumentParser(description=__doc__)
for name, size in (("K", 100), ("d", 512), ("n", 5000), ("steps", 2000)):
    parser.add_argument(f"--{name}", type=int, default=size)
args = parser.parse_args()

if int(os.environ.get("SLURM_NTASKS", "1")) > 1:
    jax.distributed.initialize()  # finds the other processes of the job by itself

problem = ufm.Problem(args.K, args.d, args.n, lam_W=1e-3, lam_H=1e-6, lam_b=1e-3)
mesh = ufm.mesh.over_samples()
params = ufm.mesh.init_params(jax.random.key(0), problem, mesh)  # no device holds all of H
run = ufm.descend(problem, params, "lbfgs", steps=args.steps, gap_tol=1e-4)
certificate = ufm.certify(problem, run.params)
if jax.process_index() == 0:
    print(f"{mesh.devices.size} devices, {run.steps} steps: {run.status}")
    print(f"f = {float(certificate.value):.6f}, gap {float(certificate.gap):.1e}")
