"""The command `ufm`: how it starts and ends, and what becomes of bad input.

What takes time to import is imported by `main`, when Ctrl-C is answered already.
"""

import atexit
import contextlib
import errno
import gc
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from ufm.runtime import interrupts

FAILED, REFUSED = 1, 2
# What printing raises, which names no file.
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF)


def run() -> NoReturn:
    """Be the process of the command: run it and exit with its status.

    The interpreter is not taken apart, which takes 0.2 s and more after JAX: files are closed, and
    what is registered for the exit is called.
    """
    _mend_streams()
    interrupts.guard()
    try:
        status = main(caching=True)
    except BaseException:
        interrupts.settle()
        raise
    interrupts.settle()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    os._exit(status)


def main(arguments: Sequence[str] | None = None, caching: bool = False) -> int:
    """Run the command line; returns the exit status.

    Args:
        arguments: those of the process by default.
        caching: let commands keep compiled programs, unless --no-cache is given: for a process
            that is the command's own.
    """
    if caching:
        # Imports and tracing make a million objects to keep, which Python would look through for
        # garbage 400 times: a tenth of a short command.
        gc.set_threshold(20_000, 10, 100)
    try:
        status = _answered(arguments, caching)
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        # Whoever read the output has seen enough: `ufm … | head`.
        _drop_output()
        return FAILED  # as rich does
    except OSError as error:
        if error.filename is not None or error.errno not in FULL:
            raise
        _drop_output()
        print(f"ufm: could not write the output: {error.strerror}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        interrupts.tell()
        return interrupts.INTERRUPTED


def _answered(arguments: Sequence[str] | None, caching: bool) -> int:
    """What the command answers; a refusal is printed."""
    settings = [f"{name}={x}" for name, x in os.environ.items() if name.startswith("JAX_")]
    try:
        from ufm.check import Refused
    except ValueError as error:  # JAX reads its settings when it is imported
        if not settings:
            raise
        print(
            f"ufm: got {', '.join(settings)}, with which JAX does not start ({error}); "
            "allowed: values that JAX documents, or the variables unset",
            file=sys.stderr,
        )
        return REFUSED
    try:
        return _act(arguments, caching)
    except Refused as error:
        print(f"ufm: {error}", file=sys.stderr)
        return REFUSED


def _act(arguments: Sequence[str] | None, caching: bool) -> int:
    """Parse and act; what is wrong with the place and the settings is refused."""
    import jax

    from ufm.check import Refused
    from ufm.commands import menu
    from ufm.runtime import cache, programs

    try:
        os.getcwd()
    except FileNotFoundError:
        raise Refused("the working folder is gone; allowed: one that exists (cd there)") from None
    command = menu.parsed(arguments)
    out = command.out if isinstance(command, menu.KEEPERS) else None
    interrupts.unwind("" if out is None else f"; the same command goes on with {out}")
    settings = jax.config.values
    if caching and not isinstance(command, menu.LONG):
        programs.compile_quickly(level=1)
    jax.config.update("jax_enable_x64", True)
    jax.config.update("jax_numpy_rank_promotion", "allow")  # ufm broadcasts
    try:
        if settings["jax_platforms"]:
            jax.devices()
    except (RuntimeError, AssertionError) as error:
        told = f" ({error})" if str(error) else ""
        raise Refused(
            f"got JAX_PLATFORMS={settings['jax_platforms']}, where JAX finds no device{told}; "
            "allowed: cpu, or another platform of this machine; unset, JAX chooses"
        ) from None
    if caching and getattr(command, "cache", False):
        cache.keep()
    try:
        return command.act()
    except FloatingPointError as error:
        if not (settings["jax_debug_nans"] or settings["jax_debug_infs"]):
            raise
        raise Refused(
            "got JAX_DEBUG_NANS or JAX_DEBUG_INFS, with which JAX stops at numbers that ufm "
            f"tests for by itself ({error}); allowed: both unset"
        ) from None


def _mend_streams() -> None:
    """Give closed streams a place to go, and letters that the terminal lacks a spelling."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            # The number must not be given to a file of a run, to which libraries would print.
            os.open(os.devnull, os.O_RDWR)
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, "w" if number else "r", closefd=False))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]


def _drop_output() -> None:
    """Let go of what standard output does not take; Python would complain at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    run()
