"""What must not depend on how many devices or processes there are, computed and printed as JSON.

python -m tests.mesh_laws one|mesh|classes all|kept [coordinator process processes] [folder]

kept: what a run and a sweep in a folder give, cut off and resumed.
"""

import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_disable_most_optimizations", True)  # compiling is what takes time here


def laws(how: str) -> dict[str, object]:
    import ufm
    from ufm import hessian
    from ufm.runtime import blocks

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
            for f in (ufm.gradient, lbfgs_step):
                compiled = jax.jit(f).lower(problem, params).compile().as_text()
                assert "all-reduce" in compiled
                assert "all-gather" not in compiled
    found: dict[str, object] = {}
    options = {
        "heavy_ball": {"learning_rate": 0.5},
        "sgd": {"batch_size": 16, "key": jax.random.key(1)},
        "lbfgs": {},
    }
    for name, more in options.items():
        run = ufm.descend(problem, params, name, steps=60, record_every=20, **more)
        assert run.params.H.sharding == params.H.sharding, name
        found |= {f"{name}/{column}": x.tolist() for column, x in run.history.items()}
    found["certificate"] = list(ufm.certify(problem, params))
    product = hessian.product(problem, params, params)
    found["product"] = [float(jnp.vdot(x, y)) for x, y in zip(product, params, strict=True)]
    if len(jax.devices()) == len(jax.local_devices()):
        found["metrics"] = [float(x) for x in ufm.metrics.collapse(*params, problem.labels)]
        found["inertia"] = list(hessian.inertia(problem, params)[:3])  # the counts
        found["extreme"] = hessian.extreme(problem, params, k=3).values.tolist()
        found["solve"] = float(ufm.objective(problem, ufm.solve(problem, params).params))
    return found


def lbfgs_step(problem, params):
    from ufm.descent import loop

    method, hyper = loop.Method("lbfgs", None, None), (0.0, 0.0)
    return loop.step(problem, method, hyper, loop.start(problem, params, method, hyper))


def kept(how: str, folder: Path) -> dict[str, object]:
    import ufm
    from ufm.descent import run as descent
    from ufm.runs import record

    problem = ufm.Problem(4, 3, 10, 5e-3, 5e-3, 5e-3)
    params = ufm.init_params(jax.random.key(0), problem)
    if how == "mesh":
        params = ufm.mesh.place(problem, params, ufm.mesh.over_samples())

    def descend(steps, resume=None):
        options = {"batch_size": 8, "key": jax.random.key(1), "record_every": 10}
        return ufm.descend(problem, params, "sgd", steps=steps, resume=resume, **options)

    with record.open_run(folder / "run", "mine", {}) as handle:
        record.save_checkpoint(handle, descent.pack(descend(30)), {})
    with record.open_run(folder / "run", "mine", {}) as handle:
        resumed = descend(60, record.load_checkpoint(handle)[0])
        record.close_run(handle, descent.pack(resumed), {})
    assert resumed.params.H.sharding == params.H.sharding
    through = descent.pack(descend(60))
    assert all(x.tobytes() == through[name].tobytes() for name, x in descent.pack(resumed).items())
    if jax.process_count() > 1:
        with pytest.raises(ufm.Refused, match=r"processes of jax\.distributed"):
            ufm.sweep(ufm.Plan())
    return {"loss": resumed.history["loss"].tolist()}


if __name__ == "__main__":
    how, which, *more = sys.argv[1:]
    if len(more) > 1:
        coordinator, process, processes = more[0], int(more[1]), int(more[2])
        jax.distributed.initialize(coordinator, processes, process)
    print(json.dumps(kept(how, Path(more[-1])) if which == "kept" else laws(how)))
