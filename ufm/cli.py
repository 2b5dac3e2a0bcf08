"""The command `ufm`: what it offers, and what becomes of bad input."""

import contextlib
import os
import shutil
import sys
import textwrap
from collections.abc import Sequence
from typing import Annotated, Any

import jax
import tyro

from ufm.check import Refused
from ufm.commands.census import Census
from ufm.commands.certify import Certify
from ufm.commands.descend import Descend
from ufm.commands.measure import Measure
from ufm.commands.probe import Probe
from ufm.commands.report import Report
from ufm.commands.shared import FAILED, INTERRUPTED, REFUSED
from ufm.commands.sweep import Sweep
from ufm.commands.table import Table
from ufm.commands.theory import Theory
from ufm.commands.verify import Verify

Command = (
    Annotated[Descend, tyro.conf.subcommand("descend")]
    | Annotated[Theory, tyro.conf.subcommand("theory")]
    | Annotated[Certify, tyro.conf.subcommand("certify")]
    | Annotated[Probe, tyro.conf.subcommand("probe")]
    | Annotated[Measure, tyro.conf.subcommand("measure")]
    | Annotated[Census, tyro.conf.subcommand("census")]
    | Annotated[Verify, tyro.conf.subcommand("verify")]
    | Annotated[Sweep, tyro.conf.subcommand("sweep")]
    | Annotated[Table, tyro.conf.subcommand("table")]
    | Annotated[Report, tyro.conf.subcommand("report")]
)


class _Wrapped:
    """A stream that breaks lines of prose between words, at the width of the terminal.

    The options of a help text come broken already, in boxes; its prose, whose lines begin with a
    letter, does not.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        width = shutil.get_terminal_size().columns
        broken = (
            textwrap.fill(line, width, break_long_words=False, break_on_hyphens=False)
            if line[:1].isalpha() and len(line) > width
            else line
            for line in text.split("\n")
        )
        self._stream.write("\n".join(broken))
        return len(text)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    try:
        status = _run(arguments)
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        # Whoever read the output has seen enough: `ufm … | head`. Python would complain at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED  # as rich does


def _run(arguments: Sequence[str] | None) -> int:
    words = sys.argv[1:] if arguments is None else arguments
    asks = not {"-h", "--help"}.isdisjoint(words)
    wrapped: Any = _Wrapped(sys.stdout)
    with contextlib.redirect_stdout(wrapped) if asks else contextlib.nullcontext():
        command = tyro.cli(
            Command,
            prog="ufm",
            description="Simulator for the landscape of the unconstrained feature model of neural "
            "collapse. Start with: ufm theory, ufm descend, ufm verify.",
            args=arguments,
        )
    jax.config.update("jax_enable_x64", True)
    try:
        return command.act()
    except BrokenPipeError:
        raise
    except Refused as error:
        print(f"ufm: {error}", file=sys.stderr)
        return REFUSED
    except KeyboardInterrupt:
        kept = command.out if isinstance(command, Descend | Census | Sweep) else None
        more = "" if kept is None else f"; the same command goes on with {kept}"
        print(f"ufm: interrupted{more}", file=sys.stderr)
        return INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
