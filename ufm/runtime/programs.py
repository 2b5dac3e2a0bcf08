"""Room for compiled programs, which hold memory maps, of which Linux allows a process a number."""

from pathlib import Path

import jax

MAPS, LIMIT = Path("/proc/self/maps"), Path("/proc/sys/vm/max_map_count")


def make_room() -> None:
    """Let go of JAX's compiled programs once this process holds half of the maps allowed.

    On a CPU a shape of a sweep takes about a thousand of 65,530; past the limit compiling fails,
    and the process with it. What is still wanted is compiled again. Nothing is done where the
    system does not tell.
    """
    try:
        held, allowed = MAPS.read_bytes().count(b"\n"), int(LIMIT.read_text())
    except OSError:
        return
    if held > allowed // 2:
        jax.clear_caches()
