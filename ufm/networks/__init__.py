"""Real networks on real images, to be compared with the model. Needs the extra `networks`.

`data` reads FashionMNIST and files of the same formats, `models` builds ResNets and an MLP in flax
nnx, `training` trains them in compiled steps with checkpoints, `evaluation` returns the arrays that
`ufm.metrics`, `ufm.certify` and `ufm.hessian` take: W (K, d), H (d, N), b (K,) and labels (N,).
"""

import importlib.util

_NEEDED = ("flax", "orbax", "pooch", "sklearn")
_MISSING = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
if _MISSING:
    raise ImportError(
        f"ufm.networks needs {', '.join(_MISSING)}, which {'is' if len(_MISSING) == 1 else 'are'} "
        "not installed: pip install 'ufm[networks]', or in a checkout pip install -c "
        "constraints.txt -e '.[networks]'"
    )
