"""float64 for every test; shapes and dtypes of ufm's signatures are checked at run time."""

import os

# Commands that tests run as processes leave the user's cache alone.
os.environ.setdefault("JAX_ENABLE_COMPILATION_CACHE", "0")

import jax
from jaxtyping import install_import_hook

# JAX_ENABLE_X64=0 is for tests/test_precision.py, which holds in both settings.
jax.config.update("jax_enable_x64", os.environ.get("JAX_ENABLE_X64", "1") != "0")
# Hundreds of small programs are compiled here and each runs once: compiling is what takes time.
# JAX_DISABLE_MOST_OPTIMIZATIONS=0 compiles them as users run them.
optimised = os.environ.get("JAX_DISABLE_MOST_OPTIMIZATIONS", "1") == "0"
jax.config.update("jax_disable_most_optimizations", not optimised)
# Not the rooms that refuse bad input themselves: their own messages are what is tested.
CHECKED = (
    "critical.newton",
    "descent.loop",
    "descent.minibatch",
    "linalg.minres",
    "losses.crossentropy",
    "model.quotient",
)
install_import_hook([f"ufm.{module}" for module in CHECKED], "beartype.beartype")
