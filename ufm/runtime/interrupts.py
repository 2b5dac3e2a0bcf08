"""Ctrl-C ends the command within three seconds, with exit status 130, whatever it is doing.

The first SIGINT raises KeyboardInterrupt in the main thread, so that a run is closed as
"interrupted". The exception may come late or be lost: a long call of XLA does not return to Python,
and an exception inside a callback is printed and ignored. Therefore a second thread ends the
process if the main one has not done so within `PATIENCE`, or at a second SIGINT. This is safe for
the files, which are complete at every moment, and the kernel unlocks the folders of a process that
has ended.

The process ends by `os._exit`: XLA threads that still compile would crash a normal exit.
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
SHOW_CURSOR = "\r\x1b[K\x1b[?25h"  # clears the line of a progress bar and shows the cursor again


class _Guard:
    """The state of the interrupts of this process."""

    struck = False  # whether a SIGINT has arrived
    raised = True  # whether an exception has been raised in the main thread, or must not be
    told = False  # whether the message has been printed
    more = ""  # what follows the word "interrupted" in it
    leaving = threading.Lock()  # taken by the thread that ends the process


def guard() -> None:
    """Handle SIGINT as the module describes; to be called in the main thread of a command.

    Where SIGINT is ignored, as in background jobs of a script, it stays ignored.
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
    """End as interrupted if a SIGINT has arrived since `guard`; later ones are ignored.

    A normal exit is short, and an interrupt during it would be printed as a traceback.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if _Guard.struck:
        leave()


def unwind(more: str) -> None:
    """From now on the first SIGINT raises KeyboardInterrupt; before, it ends the process at once.

    During imports there is nothing to close, and an exception could reach C++ code, which aborts.

    Args:
        more: how to resume the work, for the message of an interrupt.
    """
    _Guard.more, _Guard.raised, _Guard.told = more, False, False


def tell() -> None:
    """Print on standard error, once, that the command was interrupted."""
    if _Guard.told or sys.stderr is None:
        return
    _Guard.told = True
    line = f"ufm: interrupted{_Guard.more}"
    if threading.current_thread() is threading.main_thread():
        # It may have been interrupted while it was printing.
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
        time.sleep(0.2)  # another thread, or an interrupted call of this one, is ending the process
        os._exit(INTERRUPTED)
    tell()
    # Absent before it is imported and during the import; then there are no children either.
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
    """Wait for a SIGINT, then for a second one or for `PATIENCE` seconds."""
    while os.read(read, 1) != bytes([signal.SIGINT]):
        pass
    _Guard.struck = True
    select.select([read], [], [], PATIENCE)
    leave()


def _unraisable(event: Any) -> None:
    """End the process if the exception of an interrupt was raised in a callback and is lost."""
    if issubclass(event.exc_type, KeyboardInterrupt):
        leave()
    sys.__unraisablehook__(event)


def _uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        leave()
    sys.__excepthook__(kind, error, trace)
