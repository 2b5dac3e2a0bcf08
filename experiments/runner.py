"""What every script shares: command line, stored results, figures, verdicts in files.

A script offers `Config` (with `quick()`), `compute(config, progress)`, `check(config, results)`
and `draw(config, results)`. Results are stored before anything is judged or drawn: verdicts and
figures are functions of a stored file. Where things go:

    full form         figures/data/<script>/   figures/<script>.pdf .png .json
    --quick           runs/<script>_quick/     figures/<script>_quick.pdf .png .json
    changed fields    runs/<script>-<hash>/    runs/<script>-<hash>.pdf .png .json

Quick results of the networks (n01, …) are kept in figures/data/ too: they took real data.
"""

import dataclasses
import hashlib
import importlib
import io
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import jax
import tyro
from rich.console import Console
from rich.progress import Progress

from experiments import gallery
from experiments.verdicts import Verdict, conclude
from ufm import plots
from ufm.runs import record
from ufm.runtime import cache, processes, programs

ROOT = Path(__file__).resolve().parent.parent
# The quick forms that take longest, which begin first where several run side by side.
LONGEST = ("c12", "c11", "c16", "c15", "c13", "c08", "c14", "c01", "c09")

Report = Callable[[float, str], None]  # progress(share done, what is being done)


class MissingError(Exception):
    """Something that a script needs is not there; the message says how to get it."""


@dataclasses.dataclass(frozen=True)
class Options:
    """How to run."""

    quick: bool = False  # the quick form: seconds to a minute, for networks minutes
    redraw: bool = False  # judge and draw stored results again; never compute
    force: bool = False  # compute even if results of this configuration are stored

    def prepare(self) -> None:
        """What has to be there before anything is computed; raises MissingError if it is not."""

    def mark(self) -> str:
        """What keeps results apart from those of the same fields; "" if nothing does."""
        return ""


@dataclasses.dataclass(frozen=True)
class AllOptions(Options):
    """Compare every claim with its measurement; exit 1 if one is refuted, 3 if not converged."""

    only: tuple[str, ...] = ()  # scripts to run, by number or name: --only c01 c02
    no_cache: bool = False  # do not keep compiled programs in the user's cache folder
    paper: str = ""  # run the scripts on a paper, by its arXiv id: --paper 2203.01238
    list: bool = False  # show the title and the papers of every script; run nothing


def names(letter: str = "c") -> list[str]:
    """The scripts, in order: c for the model, n for networks."""
    return sorted(path.stem for path in Path(__file__).parent.rglob(f"{letter}[0-9][0-9]_*.py"))


def module(name: str) -> Any:
    """The script of a name."""
    return importlib.import_module(f"experiments.{'networks.' * (name[0] == 'n')}{name}")


def place(name: str, config: Any, mark: str = "") -> tuple[Path, Path]:
    """(folder of the stored results, path of the figures without suffix) of a configuration."""
    if not mark and config == type(config)():
        return ROOT / "figures" / "data" / name, ROOT / "figures" / name
    if not mark and config == type(config).quick():
        folder = ROOT / ("figures/data" if name[0] == "n" else "runs")
        return folder / f"{name}_quick", ROOT / "figures" / f"{name}_quick"
    digest = hashlib.sha256((json.dumps(_plain(config)) + mark).encode()).hexdigest()[:8]
    return ROOT / "runs" / f"{name}-{digest}", ROOT / "runs" / f"{name}-{digest}"


def _plain(config: Any) -> dict[str, Any]:
    """The fields as JSON gives them back."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def results(
    name: str,
    config: Any,
    options: Options,
    console: Console,
    share: Callable[[float], None] = lambda _: None,
) -> record.StoredRun:
    """Stored results if there are any of this configuration, else computed and stored ones.

    share: called with the share that is done, while results are computed.
    """
    folder, _ = place(name, config, options.mark())
    shown, status = folder.relative_to(ROOT), None
    if (folder / "manifest.json").is_file():
        stored = record.load_run(folder)
        status = stored.manifest["status"]
        same = status == "complete" and stored.manifest["config"] == _plain(config)
        if same and not options.force:
            console.print(f"{name}: not computed again, {shown} holds this configuration")
            return stored
    if options.redraw:
        _refuse(f"{name}: {shown} holds no results of this configuration; leave out --redraw")
    options.prepare()
    console.print(f"{name}: computing into {shown}")
    if status != "running":  # an open run is left to record, which knows whether it is alive
        record.remove_run(folder, name)
    script = module(name)
    with (
        record.open_run(folder, name, _plain(config), seed=config.seed) as handle,
        Progress(console=console, transient=True, disable=not console.is_terminal) as bar,
    ):
        task = bar.add_task(name, total=1.0)

        def progress(part: float, doing: str) -> None:
            bar.update(task, completed=part, description=f"{name[:3]}: {doing}")
            share(part)

        record.close_run(handle, script.compute(config, progress), {})
    return record.load_run(folder)


def run(
    name: str,
    config: Any,
    options: Options,
    console: Console,
    share: Callable[[float], None] = lambda _: None,
) -> list[Verdict]:
    """Fetch or compute, judge, draw; verdicts also go to a JSON file beside the figures.

    share: as for `results`.
    """
    jax.config.update("jax_enable_x64", True)
    script = module(name)
    try:
        _, stem = place(name, config, options.mark())
        manifest, arrays = results(name, config, options, console, share)
    except (MissingError, record.RecordError) as error:
        _refuse(f"{name}: {error}")
    verdicts = script.check(config, arrays)
    about = gallery.write_verdicts(stem, gallery.told(script, manifest, verdicts))
    with plots.style():
        for suffix, drawn in script.draw(config, arrays).items():
            save = plots.save_animation if isinstance(drawn, plots.Animation) else plots.save
            paths = save(drawn, stem.with_name(stem.name + suffix), about)
            console.print(f"{name[:3]}: drew", *(path.relative_to(ROOT) for path in paths))
    return verdicts


def _quick(
    name: str, options: Options, share: Callable[[float], None]
) -> tuple[list[Verdict], str]:
    """The quick form of a script, in whichever process: its verdicts, and what it printed."""
    said = io.StringIO()
    verdicts = run(name, module(name).Config.quick(), options, Console(file=said), share)
    jax.clear_caches()
    return verdicts, said.getvalue()


def _side_by_side(
    chosen: Sequence[str], options: Options, console: Console
) -> dict[str, list[Verdict]]:
    """The quick forms of scripts in one process a core: most of their time is compiling."""
    found: dict[str, list[Verdict]] = {}

    def keep(i: int, done: tuple[list[Verdict], str]) -> None:
        found[chosen[i]], said = done
        console.print(said, end="", markup=False)
        gallery.write_sheet(ROOT / "figures")

    rank = {short: place for place, short in enumerate(LONGEST)}
    chosen = sorted(chosen, key=lambda name: rank.get(name[:3], len(rank)))
    jobs = [(name, options) for name in chosen]
    cores = os.cpu_count() or 1
    console.print(f"{len(jobs)} claims, {cores} at a time; each reports when it is done")
    processes.run(_quick, jobs, cores, keep, lambda *_: None, patience=0.0)
    return dict(sorted(found.items()))


def _refuse(message: str) -> NoReturn:
    print(message, file=sys.stderr)
    raise SystemExit(2)


def main(name: str, args: Sequence[str] | None = None, flags: type[Options] = Options) -> int:
    """One script from the command line: the options, and every field of its Config."""
    script = module(name)
    args = sys.argv[1:] if args is None else args
    base = script.Config.quick() if "--quick" in args else script.Config()
    options, config = tyro.cli(
        tuple[flags, script.Config],  # type: ignore[name-defined, valid-type]
        default=(flags(), base),
        args=args,
        config=(tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff),
        description=script.__doc__,
        prog=f"python -m {script.__name__}",
    )
    if options.quick and name[0] == "c":  # what takes time there is compiling
        programs.compile_quickly(level=0)
    console = Console(highlight=False)
    verdicts = run(name, config, options, console)
    if place(name, config, options.mark())[1].parent == ROOT / "figures":
        gallery.write_sheet(ROOT / "figures")
    return conclude({name: verdicts}, console)


def main_all(
    args: Sequence[str] | None = None, flags: type[AllOptions] = AllOptions, letter: str = "c"
) -> int:
    """All scripts of a letter, or some, from the command line."""
    prog = "python -m experiments" + ".networks" * (letter == "n")
    options = tyro.cli(flags, args=args, prog=prog, config=(tyro.conf.FlagCreatePairsOff,))
    known = names(letter)
    chosen = [name for name in known if not options.only or name.startswith(options.only)]
    if not chosen:
        _refuse(f"got --only {' '.join(options.only)}; allowed: {', '.join(known)}")
    if options.paper:
        ids = {name: gallery.papers(module(name)) for name in chosen}
        chosen = [name for name in chosen if options.paper in ids[name]]
        if not chosen:
            allowed = sorted(set().union(*ids.values()))
            _refuse(f"got --paper {options.paper}; allowed: {', '.join(allowed)}")
    console, verdicts = Console(highlight=False), {}
    if options.list:
        for name in chosen:
            script = module(name)
            title, named = gallery.about(script)["title"], ", ".join(gallery.papers(script))
            console.print(f"{name[:3]}  {title}\n     arXiv {named}")
        return 0
    if not options.no_cache:
        cache.keep()
    if options.quick and letter == "c":
        programs.compile_quickly(level=0)
    if options.quick and letter == "c" and len(chosen) > 1 and jax.default_backend() == "cpu":
        return conclude(_side_by_side(chosen, options, console), console)
    for name in chosen:
        defaults = module(name).Config
        config = defaults.quick() if options.quick else defaults()
        verdicts[name] = run(name, config, options, console)
        gallery.write_sheet(ROOT / "figures")
        # A compiled program keeps thousands of memory maps, of which Linux allows a process 65,530:
        # those of all scripts together are too many.
        jax.clear_caches()
    return conclude(verdicts, console)
