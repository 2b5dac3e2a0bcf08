"""What must not depend on how many devices or processes there are, computed and printed as JSON.

python -m tests.mesh_laws one|mesh|classes [coordinator process processes]
"""

import json
import sys

import jax
import jax.numpy as jnp

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_disable_most_optimizations", True)  # compiling is what takes time here


def laws(how: str, which: str) -> dict[str, object]:
    import ufm
    from ufm import blocks, hessian

    problem = ufm.Problem(8, 6, (10, 12, 8, 10, 6, 14, 10, 10), 5e-3, 5e-3, 5e-3)
    key = jax.random.key(0)
    if how == "one":
        params = ufm.init_params(key, problem)
    else:
        grid = ufm.mesh.over_samples()
        params = ufm.mesh.init_params(key, problem, grid, classes=how == "classes")
        assert params.H.sharding.num_devices == len(jax.devices()) > 1
        assert params.H.addressable_shards[0].data.shape == (6, 80 // len(jax.devices()))
        blocks.LIMIT = 8 * problem.K * 3  # three columns of logits
        assert blocks.count(problem.K, params.H) > 1
        if how == "mesh":
            step = jax.jit(ufm.gradient).lower(problem, params).compile().as_text()
            assert "all-reduce" in step
            assert "all-gather" not in step
    found: dict[str, object] = {}
    options = {
        "heavy_ball": {"learning_rate": 0.5},
        "sgd": {"batch_size": 16, "key": jax.random.key(1)},
    }
    if which == "all":
        options["lbfgs"] = {}
    for name, more in options.items():
        run = ufm.descend(problem, params, name, steps=60, record_every=20, **more)
        assert run.params.H.sharding == params.H.sharding, name
        found |= {f"{name}/{column}": x.tolist() for column, x in run.history.items()}
    found["certificate"] = list(ufm.certify(problem, params))
    product = hessian.product(problem, params, params)
    found["product"] = [float(jnp.vdot(x, y)) for x, y in zip(product, params, strict=True)]
    if which == "all" and len(jax.devices()) == len(jax.local_devices()):
        found["metrics"] = [float(x) for x in ufm.metrics.collapse(*params, problem.labels)]
        found["inertia"] = list(hessian.inertia(problem, params))
        found["extreme"] = hessian.extreme(problem, params, k=3).values.tolist()
        found["solve"] = float(ufm.objective(problem, ufm.solve(problem, params).params))
    return found


if __name__ == "__main__":
    if len(sys.argv) > 3:
        coordinator, process, processes = sys.argv[3], int(sys.argv[4]), int(sys.argv[5])
        jax.distributed.initialize(coordinator, processes, process)
    print(json.dumps(laws(sys.argv[1], sys.argv[2])))
