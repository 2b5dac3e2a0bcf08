"""float64 for every test; shapes and dtypes of ufm's signatures are checked at run time."""

import os

import jax
from jaxtyping import install_import_hook

# JAX_ENABLE_X64=0 is for tests/test_precision.py, which holds in both settings.
jax.config.update("jax_enable_x64", os.environ.get("JAX_ENABLE_X64", "1") != "0")
# Hundreds of small programs are compiled here and each runs once: compiling is what takes time.
jax.config.update("jax_disable_most_optimizations", True)
# Not the rooms that refuse bad input themselves: their own messages are what is tested.
CHECKED = (
    "loop",
    "losses",
    "minibatch",
    "minres",
    "newton",
    "quotient",
)
install_import_hook([f"ufm.{module}" for module in CHECKED], "beartype.beartype")
