"""Neural collapse on FashionMNIST, far into the terminal phase, by three optimisers.

Claim. SGD, Adam and L-BFGS all reach zero training error. As training continues, NC1–NC4 fall
together: features contract to their class means (NC1), the means become equally long and
equiangular (NC2) and parallel to the rows of the classifier (NC3), and the classifier chooses the
class of the nearest mean (NC4).

Source. Papyan, Han and Donoho 2020, figures 2, 3, 5, 6 and 7; Zhu et al. 2021 (arXiv 2105.02375),
section 5.2: three optimisers, their schedules, weight decay on all parameters.

Reproduces. The epoch panels of Papyan et al. (equinorm, equiangularity, duality, nearest centre)
and the comparison of optimisers of Zhu et al., on FashionMNIST in place of their data sets.

Shown. K = 10, 100 training and 100 test images per class (quick form), weight decay 0.01. Against
the epoch, on training and test images: (a) cross-entropy, (b) error, (c) NC1, tr(Σ_W Σ_B†)/K,
(d) relative spread std/mean of the lengths ‖μ_k − μ_G‖ of centred class means and (e) of the rows
‖w_k‖, (f) mean of |cos + 1/(K−1)| over pairs of centred means, (g) NC3, ‖Wᵀ/‖W‖ − M/‖M‖‖ for the
matrix M of centred means, (h) NC4, the share of images whose decision differs from the nearest
class mean. Training images solid, test images dotted; circles mark the first epoch with a training
error of zero.

Refuted by a run that reaches zero training error and whose NC metrics then stay or grow.

SGD and Adam train a ResNet. L-BFGS needs all images in one pass: it trains an MLP.
"""

import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogFormatterSciNotation, NullFormatter

from experiments import runner
from experiments.networks import trainings
from experiments.networks.trainings import SMALL, Setting
from experiments.runner import Report
from experiments.verdicts import Verdict, judge, judge_below
from ufm import plots
from ufm.networks import evaluation
from ufm.networks.training import Recipe

DOTS = (0, (1, 1))
RUNS = {"sgd": "SGD", "adam": "Adam", "lbfgs": "L-BFGS"}
PANELS = (
    ("loss", "cross-entropy, nats"),
    ("error", "error"),
    ("nc1", r"NC1: $\mathrm{tr}(\Sigma_W\Sigma_B^\dagger)/K$"),
    ("nc2_equinorm_means", r"NC2: spread of $\|\mu_k-\mu_G\|$"),
    ("nc2_equinorm_W", r"NC2: spread of $\|w_k\|$"),
    ("nc2_equiangularity_means", "NC2: angles of means"),
    ("nc3_duality", "NC3: duality"),
    ("nc4", "NC4: disagreement"),
)


@dataclass(frozen=True)
class Config(Setting):
    """ResNet-18 by SGD and Adam, an MLP by L-BFGS, on all of FashionMNIST."""

    # Steps at the start: of SGD and of Adam.
    rates: tuple[float, float] = (0.05, 1e-3)
    hidden: tuple[int, ...] = (1024, 512)  # widths of the MLP
    iterations: int = 2000  # of L-BFGS
    nc1_fall: float = 0.5  # limit on NC1 at the end over NC1 at zero training error
    geometry_fall: float = 0.95  # the same for NC2 and NC3

    @classmethod
    def quick(cls) -> "Config":
        """A small ResNet on 1,000 images: minutes on two cores."""
        return cls(**SMALL, hidden=(256, 64), iterations=480)


def compute(config: Config, progress: Report) -> dict[str, np.ndarray]:
    """History of every run: <run>_epoch (records,), <run>_<train or test>_<measure> (records,)."""
    train, test = trainings.images(config)

    def measure(model) -> dict[str, float]:
        row: dict[str, float] = {}
        for part, of in (("train", train), ("test", test)):
            seen = evaluation.evaluate(model, of)
            row |= {f"{part}_loss": seen.loss, f"{part}_error": seen.error}
            nc = evaluation.collapse(seen)._asdict()
            row |= {f"{part}_{name}": value for name, value in nc.items()}
        return row

    results: dict[str, np.ndarray] = {}
    with trainings.trainings("n01", config, progress, len(RUNS)) as queue:
        for run, label in RUNS.items():
            model, method = _network(config, run, train)
            done = queue.run(label, model, train, method, measure, config.records, seed=config.seed)
            results |= {f"{run}_{name}": values for name, values in done.history.items()}
    return results


def _network(config: Config, run: str, train) -> tuple[Any, Recipe]:
    if run == "lbfgs":
        method = Recipe("lbfgs", config.iterations, 0, decay=config.decay)
        return trainings.mlp(train, config.hidden, config.seed), method
    rate = config.rates[list(RUNS).index(run)]
    method = Recipe(run, config.epochs, config.batch_size, rate, config.decay)
    return trainings.resnet(config, train), method


def check(config: Config, results: dict) -> list[Verdict]:
    """Zero training error, and how far the metrics fall from there to the end."""
    verdicts = []
    for run, label in RUNS.items():
        errors = results[f"{run}_train_error"]
        start = trainings.zero_from(errors)
        ended = start is not None and start < len(errors) - 1 and errors[-1] == 0
        verdicts.append(judge(f"{label}: training error at the end", errors[-1], 0, 0))
        for name, title, limit in (
            ("nc1", "NC1", config.nc1_fall),
            ("nc2_means", "NC2 of class means", config.geometry_fall),
            ("nc3", "NC3", config.geometry_fall),
        ):
            values = results[f"{run}_train_{name}"]
            fall = values[-1] / values[start] if ended else np.nan
            claim = f"{label}: {title} at the end / at zero training error"
            verdicts.append(judge_below(claim, fall, limit, ended))
        claim = f"{label}: NC4 at the end"
        verdicts.append(judge(claim, results[f"{run}_train_nc4"][-1], 0, 0, ended))
    return verdicts


def draw(_: Config, results: dict) -> dict[str, Figure]:
    """Papyan's panels over epochs: training images solid, test images dotted."""
    canvas, axes = plots.figure("icml_text", 3.9, 2, 4, sharex=True)
    for ax, (name, label) in zip(axes.flat, PANELS, strict=True):
        _draw_panel(ax, results, name)
        ax.set(xscale="log", ylabel=label)
        if name in ("error", "nc4"):
            ax.set_yscale("symlog", linthresh=1e-3, linscale=0.3)
            ax.set(ylim=(-2e-4, 1.5), yticks=(0, 1e-3, 1e-2, 1e-1, 1))
            ax.set_yticklabels(("0", "$10^{-3}$", "$10^{-2}$", "$10^{-1}$", "1"))
        else:
            ax.set_yscale("log")
            # Panels that span little more than a decade label every second minor tick.
            low, high = ax.get_ylim()
            minor = LogFormatterSciNotation(minor_thresholds=(1.8, 0.5))
            ax.yaxis.set_minor_formatter(minor if high < 70 * low else NullFormatter())
            ax.tick_params(axis="y", which="minor", labelsize="x-small")
    for ax in axes[1]:
        ax.set_xlabel("epoch + 1")
    plots.letters(axes.flat)
    handles = [
        Line2D([], [], color=plots.colour(i), label=label) for i, label in enumerate(RUNS.values())
    ]
    handles += [
        Line2D([], [], color="black", label="training images"),
        Line2D([], [], color="black", ls=DOTS, label="test images"),
        Line2D([], [], color="black", marker="o", mfc="white", ls="none", label="zero error first"),
    ]
    canvas.legend(handles=handles, loc="outside lower center", ncols=6)
    return {"": canvas}


def _draw_panel(ax: Axes, results: dict, name: str) -> None:
    """One measure of all runs, and where zero training error begins."""
    for index, run in enumerate(RUNS):
        epochs, colour = results[f"{run}_epoch"] + 1, plots.colour(index)
        for part, line in (("train", "-"), ("test", DOTS)):
            look: dict[str, Any] = {"color": colour, "linestyle": line}
            ax.plot(epochs, results[f"{run}_{part}_{name}"], **look)
        start = trainings.zero_from(results[f"{run}_train_error"])
        if start is not None:
            ring: dict[str, Any] = {"marker": "o", "mfc": "white", "ms": 4.5, "zorder": 6}
            ax.plot(epochs[start], results[f"{run}_train_{name}"][start], color=colour, **ring)


if __name__ == "__main__":
    sys.exit(runner.main("n01_collapse", flags=trainings.Options))
