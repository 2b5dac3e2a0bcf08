"""Progress on standard error: a bar on a terminal, otherwise a line every 30 seconds."""

import contextlib
import sys
import threading
import time
from collections.abc import Iterator

from rich.console import Console
from rich.progress import Progress, ProgressColumn, TextColumn

PERIOD = 30.0  # seconds between two lines of a log


@contextlib.contextmanager
def watched(*columns: ProgressColumn) -> Iterator[Progress]:
    """A bar of these columns, removed at the end; in a log their text, every `PERIOD` seconds.

    A thread writes these lines, so that they also appear while a program is being compiled.
    """
    console = Console(stderr=True)
    log = not console.is_terminal
    with Progress(*columns, console=console, transient=True, disable=log) as progress:
        if not log:
            yield progress
            return
        ended = threading.Event()
        thread = threading.Thread(target=_tell, args=(progress, ended), daemon=True)
        thread.start()
        try:
            yield progress
        finally:
            ended.set()
            thread.join()


def _tell(progress: Progress, ended: threading.Event) -> None:
    begun = time.monotonic()
    while not ended.wait(PERIOD):
        for task in progress.tasks:
            texts = [x.render(task).plain for x in progress.columns if isinstance(x, TextColumn)]
            told = ", ".join(x.strip() for x in texts if x.strip())
            # The stream may be closed, which must not end a run.
            with contextlib.suppress(OSError, ValueError):
                seconds = time.monotonic() - begun
                print(f"ufm: {seconds:.0f} s: {told}", file=sys.stderr, flush=True)
