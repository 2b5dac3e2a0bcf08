"""What must not depend on how many devices or processes there are, computed and printed as JSON.

python -m tests.mesh_laws one|mesh|classes few|all [coordinator process processes folder]

With a folder: what a run and a sweep on disk give, cut off and resumed, instead.
"""

import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_disable_most_optimizations", True)  # compiling is what takes time here


def laws(how: str, which: str) -> dict[str, object]:
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
    if which == "all" and len(jax.devices()) == len(jax.local_devices()):
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
    return {"loss": resumed.history["loss"].tolist()} | swept(folder / "sweep")


def swept(folder: Path) -> dict[str, object]:
    from ufm import Grid, Plan
    from ufm.sweeps import batches
    from ufm.sweeps import run as sweeps

    lam_H = [5e-3, 1e-2, 2e-2]
    grid = Grid(K=3, d=4, n=5, lam_W=5e-3, lam_H=lam_H, optimizer="heavy_ball", seed=[0, 1, 2])
    plan, counted, rows = Plan((grid,), steps=40, record_every=20), [], batches.rows

    def limited(plan, cells, *more):
        counted.extend(cells)
        if len(counted) > 2:  # the second batch, in every process
            raise KeyboardInterrupt
        return rows(plan, cells, *more)

    batches.MOST, batches.rows = {"cpu": 2}, limited
    try:
        sweeps.sweep(plan, folder)
    except KeyboardInterrupt:
        batches.rows = rows
    else:
        raise AssertionError("not cut off")
    if jax.process_index() == 0:
        found = sweeps.load(folder)[0]["cell"].tolist()
        assert 0 < len(found) < 9, found
    table = sweeps.sweep(plan, folder)
    again = sweeps.sweep(plan, folder)
    assert all(x.tobytes() == again[name].tobytes() for name, x in table.items())
    return {name: table[name].tolist() for name in ("cell", "value", "gap", "nc1", "steps")}


if __name__ == "__main__":
    how, which, *more = sys.argv[1:]
    if len(more) > 1:
        coordinator, process, processes = more[0], int(more[1]), int(more[2])
        jax.distributed.initialize(coordinator, processes, process)
    print(json.dumps(kept(how, Path(more[-1])) if which == "kept" else laws(how, which)))
