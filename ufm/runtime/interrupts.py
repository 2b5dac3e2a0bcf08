"""Ctrl-C ends the command within three seconds, with exit status 130, whatever it is doing.

The first SIGINT raises KeyboardInterrupt in the main thread, so that a run is closed as
"interrupted". That may be late or lost: a long call of XLA does not return to Python, and an
exception inside a callback is printed and forgotten. A thread therefore ends the process where the
main one has not done so within `PATIENCE`, or at a second SIGINT. Nothing on disk needs a farewell:
files are whole at every moment, and the kernel unlocks the folders of a process that has ended.

The process leaves by `os._exit`: threads of XLA that still compile crash the interpreter's own end.
"""

import contextlib
import os
import select
import signal
import sys
import threading
import time
from types import FrameType, TracebackType
from typing import Any, NoReturn

INTERRUPTED = 130  # exit status: 128 + SIGINT, as shells have it
PATIENCE = 2.0  # seconds between the first SIGINT and the end of the process
SHOW_CURSOR = "\r\x1b[K\x1b[?25h"  # what a progress bar of rich owes the terminal


class _Guard:
    """What is known of the interrupts of this process."""

    struck = False  # whether a SIGINT has arrived
    raised = True  # whether an exception has been, or may not be, raised in the main thread
    told = False  # whether the user has read of it
    more = ""  # what follows the word "interrupted"
    leaving = threading.Lock()  # held by the thread that ends the process


def guard() -> None:
    """Answer SIGINT from now on as the module says; for the main thread of a command.

    Where SIGINT is ignored, as in a job in the background of a script, it stays ignored.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        return
    read, write = os.pipe()
    os.set_blocking(write, False)
    signal.signal(signal.SIGINT, _strike)
    # C code writes to it whatever the main thread is doing.
    signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    sys.unraisablehook, sys.excepthook = _unraisable, _uncaught
    threading.Thread(target=_watch, args=(read,), daemon=True, name="interrupts").start()


def settle() -> None:
    """End as interrupted if a SIGINT has arrived since `guard`; from now on it is too late for one.

    The interpreter's own end is short, and an interrupt would be printed as a traceback there.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if _Guard.struck:
        leave()


def unwind(more: str) -> None:
    """From now on the first SIGINT raises KeyboardInterrupt; before, it ends the process at once.

    While modules are imported there is nothing to close, and an exception may pass through C++ code
    that aborts at it.

    Args:
        more: how the work goes on, for the line that an interrupt prints.
    """
    _Guard.more, _Guard.raised, _Guard.told = more, False, False


def tell() -> None:
    """Print on standard error, once, that the command was interrupted."""
    if _Guard.told or sys.stderr is None:
        return
    _Guard.told = True
    line = f"ufm: interrupted{_Guard.more}"
    if threading.current_thread() is threading.main_thread():
        # It may have been struck while it was printing.
        with contextlib.suppress(OSError, RuntimeError):
            print(line, file=sys.stderr, flush=True)
        return
    # Not print: the main thread may hold the lock of the stream, and a full pipe would block.
    with contextlib.suppress(OSError, ValueError):
        number = sys.stderr.fileno()
        start = SHOW_CURSOR if sys.stderr.isatty() else ""
        if select.select([], [number], [], 0)[1]:
            os.write(number, f"{start}{line}\n".encode(errors="backslashreplace"))


def leave() -> NoReturn:
    """End this process and those that it started, at once, with status 130."""
    if not _Guard.leaving.acquire(blocking=False):
        time.sleep(0.2)  # another thread, or this one when it was struck again, is at it
        os._exit(INTERRUPTED)
    tell()
    # Not there before it is imported, nor while it is; then there are no children either.
    children = getattr(sys.modules.get("multiprocessing"), "active_children", list)
    try:
        for child in children():
            child.kill()
    finally:
        os._exit(INTERRUPTED)


def _strike(_number: int, _frame: FrameType | None) -> None:
    if _Guard.raised:
        leave()
    _Guard.struck = _Guard.raised = True
    raise KeyboardInterrupt


def _watch(read: int) -> None:
    """Wait for a SIGINT, then for a second one or the end of patience."""
    while os.read(read, 1) != bytes([signal.SIGINT]):
        pass
    _Guard.struck = True
    select.select([read], [], [], PATIENCE)
    leave()


def _unraisable(event: Any) -> None:
    """Where the interrupt struck inside a callback, which swallows it: leave without it."""
    if issubclass(event.exc_type, KeyboardInterrupt):
        leave()
    sys.__unraisablehook__(event)


def _uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        leave()
    sys.__excepthook__(kind, error, trace)
