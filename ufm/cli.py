"""The command `ufm`: what it offers, and what becomes of bad input."""

import os
import sys
from collections.abc import Sequence
from typing import Annotated

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
