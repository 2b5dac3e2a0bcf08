"""`ufm census`: the critical points of one problem."""

import contextlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.console import Console
from rich.progress import SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from ufm import check
from ufm.commands.progress import watched
from ufm.commands.shared import LOOK, Compiling, ModelFlags
from ufm.critical import atlas, orbits, search
from ufm.runs import values


@dataclass(frozen=True)
class Census(Compiling):
    """Search for critical points, up to symmetry, and classify each of them.

    Newton's method polishes thousands of starts from many sources. Each orbit gets its exact Morse
    index and nullity, a certified gap and a verdict. With --out the census is kept on disk as an
    atlas: the same command again draws other starts and adds what they find. A census finds the
    critical points to which its starts lead; it does not prove that there are no others.

    Example: ufm census --K 4 --d 6 --out runs/atlas
    """

    model: Annotated[ModelFlags, tyro.conf.OmitArgPrefixes] = field(
        default_factory=lambda: ModelFlags(K=4, d=5, n=(10,), lam=5e-3)
    )
    starts: int = 256
    """starts per source and round"""
    rounds: int = 4
    """most rounds; a round that finds nothing new is the last"""
    seed: int | None = None
    """seed of the starts; default: the number of sessions that the atlas has seen"""
    out: Path | None = None
    """folder of the atlas: atlas.json, orbits-….npz"""
    json: bool = False
    """print JSON for machines instead of a table"""

    def act(self) -> int:
        """Run the census with progress on standard error; print one row for each orbit."""
        problem = self.model.problem()
        search.check(problem, self.starts, self.rounds)
        options = {"starts": self.starts, "rounds": self.rounds, "seed": self.seed}
        columns = SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn()
        with (
            _kept(self.out, problem, options) as kept,
            watched(*columns) as progress,
        ):
            task = progress.add_task("compiling")

            def on_batch(batch: search.Batch) -> None:
                tried, orbits = sum(batch.census.tried.values()), len(batch.census.orbits)
                progress.update(
                    task, description=f"{batch.source}: {tried} starts, {orbits} orbits"
                )
                if kept is not None and batch.ends_round:
                    kept.save(batch.census)

            earlier = 0 if kept is None else len(kept.sessions) - 1
            found = search.census(
                problem,
                check.key(earlier if self.seed is None else self.seed),
                starts=self.starts,
                rounds=self.rounds,
                known=None if kept is None else kept.census,
                on_batch=on_batch,
            )
        if self.json:
            print(values.text(_plain(found)))
        else:
            _print(found)
        return 0


def _kept(out: Path | None, problem, options):
    return contextlib.nullcontext() if out is None else atlas.opened(out, problem, options)


def _plain(found: search.Census) -> dict:
    rows = [atlas.table_row(orbit) for orbit in found.orbits]
    return {
        "problem": found.problem.describe(),
        "tried": found.tried,
        "refused": found.refused,
        "orbits": rows,
    }


def _print(found: search.Census) -> None:
    table = Table(title="Critical points, up to symmetry", **LOOK)
    for name in ("f (nats)", "rank", "groups", "index", "nullity", "λ_min", "gap", "hits", ""):
        justify: Literal["left", "right"] = "left" if name in ("groups", "") else "right"
        table.add_column(name, justify=justify, no_wrap=True)
    for orbit in found.orbits:
        nullity = f"{orbit.nullity}"
        if orbit.nullity != orbit.orbit_dimension:
            nullity += f" > {orbit.orbit_dimension}"
        table.add_row(
            f"{orbit.value:.9f}", f"{orbit.rank}", orbits.counted(orbit.groups),
            f"{orbit.morse_index}", nullity, f"{orbit.smallest:.1e}", f"{max(orbit.gap, 0):.0e}",
            f"{search.hits(orbit)}", orbit.kind,
        )  # fmt: skip
    console = Console()
    console.print(table)
    tried, refused = sum(found.tried.values()), sum(found.refused.values())
    undecided = sum(orbit.kind == "undecided" for orbit in found.orbits)
    console.print(
        f"{len(found.orbits)} orbits from {tried} starts; {refused} starts did not reach a "
        f"critical point and were not counted; {undecided} orbits undecided"
    )
