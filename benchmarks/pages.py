"""The tables in README.md and benchmarks/README.md, from the stored results.

    python -m benchmarks.pages

A table stands between `<!-- table: NAME -->` and `<!-- end of table -->`. Its column GPU is that of
`benchmarks.accelerator`, "not measured" until a device has been there.
"""

import re
from collections.abc import Callable
from typing import Any

from benchmarks import (
    accelerator,
    certified,
    descent_steps,
    eigenpairs,
    first_result,
    growth,
    many,
    memory,
    paired,
)
from benchmarks.draw import stored

PAGES = ("README.md", "benchmarks/README.md")
BLOCK = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end of table -->)", re.DOTALL)
# Table: the record it is made from, and how.
TABLES: dict[str, tuple[str, Callable[[Any, paired.Column], str]]] = {
    "first_result": ("first_result", lambda r, gpu: first_result.table(r["results"], gpu)),
    "memory": ("memory", lambda r, gpu: memory.table(r["results"], gpu)),
    "descent_steps": (
        "descent_steps", lambda r, gpu: descent_steps.table(r["results"] + r["one_core"], gpu),
    ),
    "descent_steps_in_short": (
        "descent_steps", lambda r, _: descent_steps.table(r["results"], short=True),
    ),
    "tested": ("descent_steps", lambda r, _: descent_steps.table_of_tested(r["tested"])),
    "many": ("many", lambda r, gpu: many.table(r["result"], gpu)),
    "eigenpairs": ("eigenpairs", lambda r, gpu: eigenpairs.table(r["results"], gpu)),
    "certified": ("certified", lambda r, gpu: certified.table(r["results"], gpu)),
    "growth": ("growth", lambda r, gpu: growth.table(r["results"], gpu)),
    "accelerator": ("accelerator", lambda r, _: accelerator.table(r)),
}  # fmt: skip


def table(name: str) -> str:
    """A table as Markdown, or "not measured"."""
    source, make = TABLES[name]
    if not (paired.RESULTS / f"{source}.json").exists():
        return f"{name}: {paired.ABSENT}"
    gpu = accelerator.columns(accelerator.stored()).get(source, {})
    return make(stored(source), gpu)


def filled(text: str) -> str:
    """The text of a page with its tables made anew."""
    return BLOCK.sub(lambda found: f"{found[1]}{table(found[2])}\n{found[3]}", text)


def main() -> None:
    """Fill the pages."""
    for page in PAGES:
        path = paired.ROOT / page
        path.write_text(filled(path.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
