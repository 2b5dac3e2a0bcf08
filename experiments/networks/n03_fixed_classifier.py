"""A classifier that is never trained, and features of dimension d = K.

Claim. If the weight of the classifier is fixed to a simplex ETF and the last block is narrowed to
d = K, the network still reaches zero training error and keeps its test accuracy with fewer
parameters: ResNet-18 for ten classes has 8,867,542 in place of 11,181,642, that is 20.70 % fewer.

Source. Zhu et al. 2021 (arXiv 2105.02375), section 5.3. Their counts are of ResNet-18 for three
channels with the 7×7 stem, the 1×1 shortcut of the narrowed block included, and the fixed weight
counted; with the 3×3 stem both are 7,680 smaller.

Reproduces. The counts of Zhu et al., section 5.3, exactly; their comparison of fixed and learned
classifiers on FashionMNIST instead of their data sets. Extends it by memory and time of a step.

Shown. K = 10, 100 training images per class, weight decay 0.01, one start per form (quick form).
(a) Test error, (b) NC1 and (c) NC3 against the epoch; (d) parameters, memory and time of a training
step of the four forms, relative to the first, with absolute numbers on the bars. Only the
parameters differ clearly: each time is that of the fastest of 10 epochs, without an error bar.

Refuted by a network with a fixed classifier that does not reach zero training error, or whose test
error is larger by more than the tolerance; by other counts.
"""

import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
from flax import nnx
from matplotlib.figure import Figure

from experiments import runner
from experiments.networks import trainings
from experiments.networks.trainings import SMALL, Setting
from experiments.runner import Report
from experiments.verdicts import Verdict, judge, judge_below
from ufm import plots
from ufm.networks import evaluation, models, training
from ufm.networks.training import Recipe

# head, whether d = K, how it is called
FORMS = (
    ("learned", False, "learned"),
    ("simplex", False, "fixed"),
    ("learned", True, "learned,\n$d=K$"),
    ("simplex", True, "fixed,\n$d=K$"),
)
COUNTS = {"learned": 11_181_642, "fixed, d = K": 8_867_542}  # Zhu et al.
MEASURES = ("epoch", "train_error", "test_error", "nc1", "nc3")


@dataclass(frozen=True)
class Config(Setting):
    """ResNet-18 in four forms, SGD."""

    rate: float = 0.05  # step at the start
    timed: int = 10  # epochs timed, of which the fastest counts
    # Tolerance on the difference of test errors; with N test images chance alone makes it
    # √(2·0.2·0.8/N): 0.018 for 1,000, 0.006 for 10,000.
    error_tol: float = 0.01

    @classmethod
    def quick(cls) -> "Config":
        """A small ResNet on 1,000 images: two minutes on two cores."""
        return cls(**SMALL | {"epochs": 100, "records": 15}, error_tol=0.04)


def compute(config: Config, progress: Report) -> dict[str, np.ndarray]:
    """Histories (forms, records), and of every form: parameters, seconds and bytes a step."""
    train, test = trainings.images(config)
    method = Recipe("sgd", config.epochs, config.batch_size, config.rate, config.decay)

    def measure(model) -> dict[str, float]:
        seen = evaluation.evaluate(model, train)
        nc, errors = evaluation.collapse(seen), (seen.error, evaluation.evaluate(model, test).error)
        return {"train_error": errors[0], "test_error": errors[1], "nc1": nc.nc1, "nc3": nc.nc3}

    histories, networks = [], []
    with trainings.trainings("n03", config, progress, len(FORMS)) as queue:
        for head, narrow, label in FORMS:
            d = len(np.unique(train.labels)) if narrow else None
            model = trainings.resnet(config, train, head=head, d=d)
            name = label.replace("\n", " ")
            done = queue.run(name, model, train, method, measure, config.records, seed=config.seed)
            histories.append(done.history)
            networks.append(model)
    # Side by side and after all training, so that a busy machine is slow for all alike.
    costs = [training.cost(model, train, method, config.timed) for model in networks]
    seconds, memory = np.array(costs).T
    counted = [count for _, count in published()]
    return {name: np.array([history[name] for history in histories]) for name in MEASURES} | {
        "parameters": np.array([models.count(model) for model in networks]),
        "seconds": seconds,
        "bytes": memory,
        "published": np.array(counted),
    }


def published() -> list[tuple[str, int]]:
    """Parameters of ResNet-18 in the two forms that Zhu et al. count; nothing is computed."""

    def counted(**options: Any) -> int:
        make = lambda: models.resnet18(stem="7x7/2", rngs=nnx.Rngs(0), **options)  # noqa: E731
        return models.count(nnx.eval_shape(make))

    counts = (counted(), counted(d=10, head="simplex"))
    return list(zip(COUNTS, counts, strict=True))


def check(config: Config, results: dict) -> list[Verdict]:
    """Counts, training errors, and test errors against the learned classifier."""
    verdicts = [
        judge(f"ResNet-18, {name}: parameters", count, COUNTS[name], 0)
        for name, count in zip(COUNTS, results["published"], strict=True)
    ]
    first, last = results["published"]
    claim = "ResNet-18: change of parameters, per cent"
    verdicts.append(judge(claim, 100 * (last / first - 1), -20.70, 0.005))
    for i, (*_, label) in enumerate(FORMS):
        name = label.replace("\n", " ").replace("$", "")
        verdicts.append(judge(f"{name}: training error", results["train_error"][i, -1], 0, 0))
    base = results["test_error"][0, -1]
    for i in range(1, len(FORMS)):
        name = FORMS[i][2].replace("\n", " ").replace("$", "")
        ended = results["train_error"][i, -1] == 0
        difference = results["test_error"][i, -1] - base
        claim = f"{name}: test error − that of the learned classifier"
        verdicts.append(judge_below(claim, difference, config.error_tol, bool(ended)))
    return verdicts


def draw(_: Config, results: dict) -> dict[str, Figure]:
    """Errors and NC over epochs, and what each form costs."""
    canvas, axes = plots.figure("icml_text", 4.0, 2, 2)
    curves = (*axes[0], axes[1, 0])
    for i, form in enumerate(FORMS):
        x, name = results["epoch"][i] + 1, form[-1].replace("\n", " ")
        for ax, measure in zip(curves, ("test_error", "nc1", "nc3"), strict=True):
            plots.curves(ax, x, results[measure][i], name, i)
    for ax, name in zip(curves, ("test error", "NC1, training", "NC3, training"), strict=True):
        ax.set(xscale="log", yscale="log", ylabel=name, xlabel="epoch + 1")
    axes[0, 0].set_yticks([0.2, 0.3, 0.5, 1], ["0.2", "0.3", "0.5", "1"])
    axes[0, 0].minorticks_off()
    axes[0, 0].legend()
    costs = axes[1, 1]
    units = (("parameters", 1e3, "thousands"), ("bytes", 2**20, "MiB"), ("seconds", 1e-3, "ms"))
    for i in range(len(FORMS)):
        shares = [results[name][i] / results[name][0] for name, _, _ in units]
        at = np.arange(len(units)) + 0.2 * (i - 1.5)
        drawn = costs.bar(at, shares, 0.19, color=plots.colour(i))
        numbers = [f"{results[name][i] / unit:.3g}" for name, unit, _ in units]
        costs.bar_label(drawn, numbers, fontsize=6, padding=1)
    titles = ("parameters", "memory of a step", "time of a step")
    words = [f"{title},\n{unit}" for title, (_, _, unit) in zip(titles, units, strict=True)]
    costs.set_xticks(range(len(units)), words)
    costs.set(ylabel="relative to learned, $d > K$", ylim=(0, 1.2))
    plots.letters(axes.flat)
    return {"": canvas}


if __name__ == "__main__":
    sys.exit(runner.main("n03_fixed_classifier", flags=trainings.Options))
