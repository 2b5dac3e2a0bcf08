"""The commands, by the names that they are called by, and the parsing of a command line."""

import contextlib
import decimal
import shutil
import sys
import textwrap
from collections.abc import Sequence
from typing import Annotated, Any, Union, get_args

import tyro

from ufm import check
from ufm.commands.census import Census
from ufm.commands.certify import Certify
from ufm.commands.descend import Descend
from ufm.commands.measure import Measure
from ufm.commands.plot import Plot
from ufm.commands.probe import Probe
from ufm.commands.report import Report
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
    | Annotated[Plot, tyro.conf.subcommand("plot")]
    | Annotated[Report, tyro.conf.subcommand("report")]
)
LONG = (Descend, Sweep)  # their steps take longer than compiling
KEEPERS = (Descend, Census, Sweep, Verify)  # with --out they can resume


def parsed(arguments: Sequence[str] | None) -> Any:
    """The command of a command line, as its dataclass; None takes the arguments of the process.

    Raises:
        Refused: a number that underflows to 0 in float64.
        SystemExit: after printing help, or if tyro cannot parse a word.
    """
    words = sys.argv[1:] if arguments is None else arguments
    for word in words:
        _check_number(word.rpartition("=")[2])
    asks = not {"-h", "--help"}.isdisjoint(words)
    wrapped: Any = _Wrapped(sys.stdout)
    with contextlib.redirect_stdout(wrapped) if asks else contextlib.nullcontext():
        return tyro.cli(
            _titles() if asks and words[0] in ("-h", "--help") else Command,
            prog="ufm",
            description="Simulator for the landscape of the unconstrained feature model of neural "
            "collapse. Start with: ufm theory, ufm descend, ufm verify. ufm COMMAND --help "
            "explains a command.",
            args=arguments,
        )


def _titles() -> Any:
    """The commands with the first line of their help: a list that fits a screen."""
    listed: list[Any] = []
    for command in get_args(Command):
        kind, (subcommand,) = command.__origin__, command.__metadata__
        title = (kind.__doc__ or "").partition("\n")[0]
        named = tyro.conf.subcommand(subcommand.name, description=title)
        listed.append(Annotated[kind, named])
    return Union[tuple(listed)]  # noqa: UP007  of a number of members that is not known here


def _check_number(word: str) -> None:
    """Refuse a number that would be parsed as 0, since it underflows in float64."""
    try:
        exact = isinstance(check.number_text(word), decimal.Decimal)
    except ValueError:
        return
    if exact:
        raise check.Refused(
            f"got {word}, which float64 takes for 0; allowed: 0, or a larger number"
        )


class _Wrapped:
    """A stream that wraps prose between words, at the width of the terminal.

    In a help text by tyro the options are wrapped already, in boxes; the prose, whose lines begin
    with a letter, is not.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write a text with its long lines wrapped."""
        width = shutil.get_terminal_size().columns
        broken = (
            textwrap.fill(line, width, break_long_words=False, break_on_hyphens=False)
            if line[:1].isalpha() and len(line) > width
            else line
            for line in text.split("\n")
        )
        self._stream.write("\n".join(broken))
        return len(text)
