"""What the paired benchmarks share: rounds, medians, the environment, tables and records.

A round times each contestant once, one after the other, so that a machine whose speed drifts
drifts for all; figures are medians over rounds, of times or of ratios within a round.
"""

import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results"
ABSENT = "not measured"
PAUSE = 0.05  # seconds: for so long the threads of the contestant before may wait by spinning

Rounds = list[dict[str, float]]
Column = dict[str, str]  # cells of a table's last column by those of its first ones


def seconds(run: Callable[[], Any]) -> float:
    """Wall time of one call, which must not return before its work is done."""
    begun = time.perf_counter()
    run()
    return time.perf_counter() - begun


def rounds(contestants: dict[str, Callable[[], Any]], count: int) -> Rounds:
    """`count` rounds of wall times."""
    return [{name: _rested(run) for name, run in contestants.items()} for _ in range(count)]


def _rested(run: Callable[[], Any]) -> float:
    time.sleep(PAUSE)
    return seconds(run)


def median(rounds: Rounds, name: str, over: str | None = None) -> float:
    """Median time of a contestant, or of its ratio to another within a round."""
    return statistics.median(r[name] / (r[over] if over else 1.0) for r in rounds)


def environment(packages: Sequence[str]) -> dict[str, Any]:
    """What the figures depend on."""
    return {
        "machine": platform.machine(),
        "processor": _processor(),
        "cores": cores(),
        "load_before": os.getloadavg(),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in packages},
    }


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def installed(name: str) -> bool:
    """Whether a peer is there to be timed; where it is not its columns say so."""
    return find_spec(name) is not None


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((x.split(":")[1].strip() for x in lines if x.startswith("model name")), "")


def table(
    header: Sequence[str],
    rows: Iterable[Sequence[str]],
    gpu: Column | None = None,
    keys: int = 1,
) -> str:
    """A Markdown table; with `gpu` its last column, found by the first `keys` cells of a row."""
    if gpu is not None:
        header = [*header, "GPU"]
        rows = [[*row, gpu.get(" | ".join(row[:keys]), ABSENT)] for row in rows]
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def write(name: str, record: dict[str, Any]) -> None:
    """Store a record as results/{name}.json."""
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n")
