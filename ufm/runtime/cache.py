"""Compiled programs kept between processes, in the user's cache folder: bounded, and on demand.

JAX keeps them (its persistent compilation cache); here is where, how many, and when: the command
`ufm` and the experiments ask for it, the library by itself never does. Folders are one a kind of
processor, since programs of another may not run on this one where a home is shared.
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
    """$XDG_CACHE_HOME/ufm/jax-…, by default below ~/.cache, for this kind of processor."""
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
    """Let this process keep its programs, and use those that are kept.

    Nothing is done where the user has set JAX's own cache or has switched it off, or where there is
    no folder to write to.
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
    # A file that a killed process left half written is a program to be compiled, no more.
    warnings.filterwarnings("ignore", message="Error (reading|writing) persistent compilation")
    jax.config.update("jax_compilation_cache_dir", str(place))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def prune(place: Path, most: int) -> None:
    """Delete the files of a folder that were used longest ago, until they take `most` bytes."""
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
