"""The commands, by the names that they are called by."""

from typing import Annotated

import tyro

from ufm.commands.census import Census
from ufm.commands.certify import Certify
from ufm.commands.descend import Descend
from ufm.commands.measure import Measure
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
    | Annotated[Report, tyro.conf.subcommand("report")]
)
KEEPERS = (Descend, Census, Sweep, Verify)  # with --out they go on where they were cut off
