"""One large problem on many devices, with the samples split among them.

The columns of H are split over the devices, and with them the logits, gradients and momenta. W and
b are replicated, or for very many classes split over their rows. All other code is the same as on
one device: XLA inserts the sums over devices for G Hᵀ, G 1, losses and Gram matrices, and the
devices exchange O(Kd) numbers in each step.

    mesh = ufm.mesh.over_samples()
    params = ufm.mesh.init_params(jax.random.key(0), problem, mesh)
    run = ufm.descend(problem, params, …)

The devices are those of this process, or after `jax.distributed.initialize()` those of all
processes.
"""

from collections.abc import Sequence
from functools import partial

import jax
import numpy as np
from jax import Array
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from ufm import check
from ufm.check import Refused
from ufm.model import points
from ufm.model import problem as model
from ufm.model.points import check_params
from ufm.model.problem import Params, Problem
from ufm.runtime.blocks import AXIS


def over_samples(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh with one axis, "samples", over the given devices or all devices.

    Args:
        devices: JAX devices; by default `jax.devices()`, those of every process.

    Raises:
        Refused: no devices, or objects that are not JAX devices.
    """
    chosen = jax.devices() if devices is None else check.several(devices)
    if not chosen or not all(isinstance(device, jax.Device) for device in chosen):
        raise Refused(f"got devices={check.shown(devices)}; allowed: JAX devices, one or more")
    return Mesh(np.array(chosen), (AXIS,))


def shardings(problem: Problem, mesh: Mesh, classes: bool = False) -> Params:
    """Shardings of W, H and b: H split over samples, W and b replicated or split over classes.

    Args:
        problem: gives the sizes.
        mesh: with an axis "samples".
        classes: split the rows of W and b as well.

    Raises:
        Refused: N, or with `classes` K, is not a multiple of the number of devices.
    """
    model.require(problem)
    if not isinstance(mesh, Mesh | AbstractMesh) or AXIS not in mesh.shape:
        raise Refused(
            f"got {check.shown(mesh)} as mesh; allowed: one with an axis {AXIS!r}, as "
            "ufm.mesh.over_samples() makes it"
        )
    devices = mesh.shape[AXIS]
    for name, size in (("N", problem.N), *((("K", problem.K),) if classes else ())):
        if size % devices:
            near = size - size % devices or devices
            raise Refused(
                f"got {name}={size} on {devices} devices; allowed: a multiple of {devices}, such "
                f"as {near}, or a mesh of fewer devices: ufm.mesh.over_samples(jax.devices()[:k])"
            )
    rows = PartitionSpec(AXIS) if classes else PartitionSpec()
    return Params(*(NamedSharding(mesh, s) for s in (rows, PartitionSpec(None, AXIS), rows)))


def place(problem: Problem, params: Params, mesh: Mesh, classes: bool = False) -> Params:
    """Existing params distributed over the mesh; every process passes the same arrays.

    Args:
        problem, mesh, classes: as for `shardings`.
        params: a point of the problem.

    Raises:
        Refused: sizes that are not multiples of the number of devices, params that do not fit the
            problem.
    """
    check_params(problem, params)
    return jax.device_put(params, shardings(problem, mesh, classes))


def init_params(
    key: Array,
    problem: Problem,
    mesh: Mesh,
    scale: float = 0.1,
    dtype=None,
    classes: bool = False,
) -> Params:
    """The numbers of `ufm.init_params`, drawn on their own devices: no device holds all of H.

    Args:
        key, problem, scale, dtype: as for `ufm.init_params`.
        mesh, classes: as for `shardings`.

    Raises:
        Refused: sizes that are not multiples of the number of devices; as `ufm.init_params`.
    """
    build = partial(points.init_params, problem=problem, scale=scale, dtype=dtype)
    return jax.jit(build, out_shardings=shardings(problem, mesh, classes))(check.key(key))
