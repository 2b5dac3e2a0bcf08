"""Random labels: collapse strengthens as the network grows towards unconstrained features.

Claim. Random labels carry no information about the images, so any geometry that appears comes from
the capacity of the network alone. Wide enough networks memorise such labels. The wider a network
is, the closer it comes to the model, in which features are free: NC1 at the end falls with the
width.

Source. Zhu et al. 2021 (arXiv 2105.02375), section 5.2 and figure 4: MLPs and ResNet-18 of several
widths on CIFAR-10 with random labels.

Reproduces. Figure 4 of Zhu et al. for MLPs, on FashionMNIST in place of CIFAR-10.

Shown. MLPs with three hidden layers, K = 10, 100 images per class, weight decay 2e-3 (quick form).
(a) Training error, (b) NC1, (c) NC2 and NC3 at the end against the width, one point for each of two
starts per width; (d) NC1 of the first start against the epoch.

Refuted by an NC1 that does not decrease with the width (rank correlation not negative), or by a
widest network that cannot memorise.
"""

import sys
from dataclasses import dataclass

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter
from scipy.stats import spearmanr

from experiments import runner
from experiments.networks import trainings
from experiments.networks.trainings import SMALL, Setting
from experiments.runner import Report
from experiments.verdicts import Verdict, judge, judge_below
from ufm import plots
from ufm.networks import data, evaluation
from ufm.networks.training import Recipe

MEASURES = ("error", "nc1", "nc2_means", "nc3", "nc4")


@dataclass(frozen=True)
class Config(Setting):
    """MLPs of three hidden layers, all of one width, on FashionMNIST under permuted labels."""

    sizes: tuple[int, ...] = (128, 256, 512, 1024, 2048)  # widths of the hidden layers
    layers: int = 3  # hidden layers
    rate: float = 0.05  # step of SGD at the start
    starts: int = 3  # seeds of each width

    @classmethod
    def quick(cls) -> "Config":
        """1,000 images, narrower networks: minutes on two cores."""
        return cls(
            **SMALL | {"decay": 2e-3, "records": 12}, sizes=(16, 32, 64, 128, 256, 512), starts=2
        )


def compute(config: Config, progress: Report) -> dict[str, np.ndarray]:
    """Measures (widths, starts, records) on the training images under their random labels."""
    train, _ = trainings.images(config)
    part = data.random_labels(train, config.seed)
    method = Recipe("sgd", config.epochs, config.batch_size, config.rate, config.decay)

    def measure(model) -> dict[str, float]:
        seen = evaluation.evaluate(model, part)
        nc = evaluation.collapse(seen)._asdict()
        return {"error": seen.error} | {name: nc[name] for name in MEASURES[1:]}

    rows = []
    count = len(config.sizes) * config.starts
    with trainings.trainings("n04", config, progress, count) as queue:
        for size in config.sizes:
            for seed in range(config.seed, config.seed + config.starts):
                model, name = trainings.mlp(part, (size,) * config.layers, seed), f"width {size}"
                done = queue.run(name, model, part, method, measure, config.records, seed=seed)
                rows.append(done.history)
    shape = (len(config.sizes), config.starts, -1)
    stored = {name: np.array([row[name] for row in rows]).reshape(shape) for name in MEASURES}
    return stored | {"epoch": rows[0]["epoch"]}


def check(config: Config, results: dict) -> list[Verdict]:
    """Memorised at the widest, and the sign of the rank correlation of width and NC1."""
    errors = results["error"][..., -1]
    verdicts = [judge("widest network: training error, random labels", errors[-1].max(), 0, 0)]
    sizes = np.repeat(config.sizes, config.starts)
    for name, title in (("nc1", "NC1"), ("nc2_means", "NC2 of class means"), ("nc3", "NC3")):
        correlation = spearmanr(sizes, results[name][..., -1].ravel()).statistic
        claim = f"rank correlation of width and {title} at the end"
        verdicts.append(judge_below(claim, correlation, 0))
    narrowest, widest = results["nc1"][0, :, -1].mean(), results["nc1"][-1, :, -1].mean()
    verdicts.append(judge_below("NC1 of the widest / of the narrowest", widest / narrowest, 0.1))
    return verdicts


def draw(config: Config, results: dict) -> dict[str, Figure]:
    """Training error and NC1–NC3 at the end over the width, and NC1 over epochs."""
    canvas, axes = plots.figure("icml_text", 2.2, 1, 4)
    sizes = np.repeat(config.sizes, config.starts)
    titles = {"error": "error, training", "nc1": "NC1", "nc2_means": "NC2, means", "nc3": "NC3"}
    for index, (name, title) in enumerate(titles.items()):
        ax = axes[0, min(index, 2)]
        plots.points(ax, sizes, results[name][..., -1].ravel(), label=title, index=index)
        ax.set(xscale="log", xlabel="width", xticks=config.sizes[::2])
        ax.set_xticklabels(map(str, config.sizes[::2]))
        ax.minorticks_off()
    axes[0, 0].set(ylabel="training error", ylim=(-0.002, None))
    axes[0, 0].set_title(f"{config.starts} starts per width", fontsize="small")
    axes[0, 3].set_title("first start", fontsize="small")
    axes[0, 1].set(yscale="log", ylabel="NC1 at the end")
    axes[0, 2].set(yscale="log", ylabel="NC2 and NC3 at the end")
    axes[0, 2].legend()
    shades = colormaps["viridis_r"](np.linspace(0.1, 1, len(config.sizes)))
    for index, (size, shade) in enumerate(zip(config.sizes, shades, strict=True)):
        values = results["nc1"][index, 0]
        axes[0, 3].plot(results["epoch"] + 1, values, color=shade, label=str(size))
    axes[0, 3].set(xscale="log", yscale="log", xlabel="epoch + 1", ylabel="NC1")
    canvas.legend(*axes[0, 3].get_legend_handles_labels(), title="width", loc="outside right upper")
    for ax in axes[0, 1:]:
        ax.yaxis.set_minor_formatter(NullFormatter())
    axes[0, 1].set(yticks=(0.2, 0.5, 1, 2, 5), yticklabels=("0.2", "0.5", "1", "2", "5"))
    axes[0, 2].set(yticks=(0.2, 0.3, 0.5, 1), yticklabels=("0.2", "0.3", "0.5", "1"))
    plots.letters(axes.flat)
    return {"": canvas}


if __name__ == "__main__":
    sys.exit(runner.main("n04_random_labels", flags=trainings.Options))
