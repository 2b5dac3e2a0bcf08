"""The figures and tables of the benchmarks, from their stored results: python -m benchmarks.draw.

One point is the median over rounds of the ratio, within a round, of another's time to that of `ufm`
on the same work; right of the line `ufm` is faster. An arrow is a ratio of at least so much: the
other was stopped there, short of the gap or the residual asked for.
"""

import json
from collections.abc import Iterator
from typing import Any

from matplotlib.figure import Figure

from benchmarks import certified, descent_steps, eigenpairs, growth, paired
from ufm import plots

# A series of points: where the ratios lie, and what the other is.
PEERS = (
    "PyTorch, eager", "torch.compile", "SGD(fused=True)", "naive JAX", "NumPy", "SciPy", "matfree",
    "hessian-eigenthings",
)  # fmt: skip
STEPS = dict(zip(descent_steps.PEERS, PEERS, strict=False))
# The solvers of the eigenpairs, and the name of each point there.
SOLVERS = {"eigsh": "SciPy", "matfree": "matfree", "eigenthings": "hessian-eigenthings"}
WHERE = {"saddle": "at a saddle", "on the way": "on the way"}


def stored(name: str) -> Any:
    """results/{name}.json."""
    return json.loads((paired.RESULTS / f"{name}.json").read_text())


def ratios() -> Iterator[tuple[str, dict[str, float]]]:
    """(what is done, peer → its time over that of `ufm`) for every paired benchmark."""
    for row in stored("descent_steps")["results"]:
        found = {peer: descent_steps.quickest(row, name) for name, peer in STEPS.items()}
        yield (
            "a step, $(K,d,n)=(" + ",".join(map(str, row["shape"])) + ")$",
            {peer: x["over_ufm"] for peer, x in found.items() if x},
        )
    many = stored("many")["result"]
    if many["torch_over"]:
        yield (
            "a step in a sweep of 256 problems $(10,20,10)$",
            {PEERS[0]: many["torch_over"]["ufm.sweep, steady state"]},
        )
    for row in stored("certified")["results"]:
        names = {
            "SciPy": certified.quickest(row, "scipy"),
            PEERS[0]: certified.quickest(row, "torch"),
        }
        over = {peer: row["over_ufm"][name] for peer, name in names.items() if name}
        yield f"gap $\\leq 10^{{-8}}$ by L-BFGS, $K=d={row['K']}$", over
    for row in stored("eigenpairs")["results"]:
        over = {p: row["over_ufm"][name] for name, p in SOLVERS.items() if name in row["over_ufm"]}
        yield f"eigenpairs of {row['size']:,} variables, {WHERE[row['point']]}", over


def stopped(rows: list[tuple[str, dict[str, float]]]) -> Iterator[tuple[float, int]]:
    """(ratio, row) of those whose gap or residual was still too large when they were stopped."""
    first = next(i for i, (what, _) in enumerate(rows) if what.startswith("gap"))
    for i, row in enumerate(stored("certified")["results"]):
        for who in ("scipy", "torch"):
            name = certified.quickest(row, who)
            if name and row["gaps"][name] > certified.GAP:
                yield row["over_ufm"][name], first + i
    first = next(i for i, (what, _) in enumerate(rows) if what.startswith("eigenpairs"))
    for i, row in enumerate(stored("eigenpairs")["results"]):
        for name in SOLVERS:
            if name in row["over_ufm"] and row["chosen"][name]["residual"] > eigenpairs.RESIDUAL:
                yield row["over_ufm"][name], first + i


def speed() -> Figure:
    """All ratios, one line a piece of work."""
    rows = list(ratios())
    with plots.style():
        canvas, axes = plots.figure("icml_text", 0.6 + 0.21 * len(rows))
        ax = axes[0, 0]
        for index, peer in enumerate(PEERS):
            points = [(over[peer], i) for i, (_, over) in enumerate(rows) if peer in over]
            if not points:  # not measured
                continue
            ax.plot(
                *zip(*points, strict=True), plots.MARKERS[index % len(plots.MARKERS)],
                color=plots.colour(index), label=peer, markersize=4,
                fillstyle="none" if index >= len(plots.MARKERS) else "full",
            )  # fmt: skip
        for ratio, row in stopped(rows):
            ax.annotate(
                "", (1.7 * ratio, row), (ratio, row), arrowprops={"arrowstyle": "->", "lw": 0.8}
            )
        ax.axvline(1, color="black", linestyle=plots.DASHED, linewidth=0.8)
        ax.set(
            xscale="log", xlabel="time of the other over time of ufm", ylim=(len(rows) - 0.5, -0.5)
        )
        ax.set_yticks(range(len(rows)), [what for what, _ in rows])
        ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return canvas


def main() -> None:
    """Draw results/speed and results/growth, print the table of growth."""
    plots.save(speed(), paired.RESULTS / "speed")
    grown = stored("growth")["results"]
    plots.save(growth.draw(grown), paired.RESULTS / "growth")
    print(growth.table(grown))


if __name__ == "__main__":
    main()
