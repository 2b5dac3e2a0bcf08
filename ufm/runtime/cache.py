"""JAX's persistent compilation cache, in a folder of bounded size among the user's caches.

Only the command `ufm` and the experiments switch it on, never the library by itself. Each kind of
processor has its own folder, since machines that share a home directory may not run each other's
programs.
"""

import hashlib
import os
import platform
import warnings
from pathlib import Path

import jax

MOST = 2**29  # bytes; a shape of a problem takes about half a MiB a method
CPU = Path("/proc/cpuinfo")


def folder() -> Path:
    """The folder of this kind of processor, $XDG_CACHE_HOME/ufm/jax-…, by default in ~/.cache."""
    home = os.environ.get("XDG_CACHE_HOME", "")
    above = Path(home) if os.path.isabs(home) else Path.home() / ".cache"
    try:
        lines = CPU.read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    kinds = ("flags", "Features", "model name")
    told = sorted({line for line in lines if line.startswith(kinds)})
    kind = f"{platform.machine()} {platform.processor()} {told}"
    return above / "ufm" / f"jax-{hashlib.sha256(kind.encode()).hexdigest()[:12]}"


def keep() -> None:
    """Switch on the cache in this process.

    Does nothing if the user has chosen a cache for JAX or has switched it off, or if the folder
    cannot be written.
    """
    settings = jax.config.values
    if settings["jax_compilation_cache_dir"] or not settings["jax_enable_compilation_cache"]:
        return
    try:
        place = folder()
        place.mkdir(parents=True, exist_ok=True)
        prune(place, MOST)
    except (OSError, RuntimeError):  # no such home
        return
    if not os.access(place, os.W_OK):
        return
    # A file that a killed process left half written only costs a compilation.
    warnings.filterwarnings("ignore", message="Error (reading|writing) persistent compilation")
    jax.config.update("jax_compilation_cache_dir", str(place))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def prune(place: Path, most: int) -> None:
    """Delete the least recently used files of a folder until the others take `most` bytes."""
    found = []
    for path in place.iterdir():
        try:
            held = path.stat()
        except OSError:  # another process was faster
            continue
        found.append((max(held.st_atime, held.st_mtime), held.st_size, path))
    total = sum(size for _, size, _ in found)
    for _, size, path in sorted(found):
        if total <= most:
            return
        total -= size
        path.unlink(missing_ok=True)
