"""Unequal classes on real images: minority rows of the classifier approach, as the model predicts.

Claim. A network is trained on ten classes, five of which keep only a share of their images. The
larger the ratio of the counts, the smaller are the angles between minority rows of the classifier
and the larger those between majority rows. Up to a ratio of 10 the cosines agree with the minimum
of the unconstrained feature model for these counts; λ_H := λ_W‖W‖²/‖H‖² is not fitted. At a ratio
of 100 majority rows still follow the model; minority rows, of classes with two images each in the
quick form, approach further than the model predicts. A classifier fixed to a simplex ETF keeps all
rows apart and has no larger error on the minority.

Source. Fang et al. 2021 (arXiv 2101.12699), minority collapse, and Hong and Ling 2023 (arXiv
2309.09725), whose minimum for any counts is that of `ufm.theory.groups`; Yang et al. 2022 (arXiv
2203.09081) for a fixed simplex ETF on unequal classes.

Reproduces. The figure of Fang et al. of minority cosines over the ratio of the counts, on
FashionMNIST, with the same decay for all features.

Shown. K = 10, 200 images per majority class (quick form), weight decay 5e-3. Against the ratio of
the counts, for a learned and a fixed classifier: (a) mean cosine of two rows of W, both of minority
or both of majority classes; (b) the same for centred class means, without a claim; (c) test error
on images of minority and of majority classes. Crosses: the model with a learned classifier.

Refuted by cosines that differ from the model's by more than the tolerance, or by cosines of
minority rows that do not grow with the ratio.

The network is an MLP trained by L-BFGS in full batches, which comes nearest to a critical point.
"""

import sys
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from matplotlib.figure import Figure

from experiments import runner
from experiments.networks import n02_against_the_model as n02
from experiments.networks import trainings
from experiments.networks.trainings import SMALL, Setting
from experiments.runner import Report
from experiments.verdicts import Verdict, judge, judge_above, judge_below
from ufm import plots, theory
from ufm.networks import evaluation
from ufm.networks.data import Images
from ufm.networks.evaluation import Evaluation
from ufm.networks.training import Recipe

HEADS = {"learned": "learned", "simplex": "fixed"}
HALF = 5  # classes of the majority, the first ones


@dataclass(frozen=True)
class Config(Setting):
    """An MLP on all images of five classes and a share of those of the others."""

    ratios: tuple[int, ...] = (1, 10, 100)  # images of a majority class over those of a minority's
    hidden: tuple[int, ...] = (1024, 512)  # widths of the MLP
    iterations: int = 2000  # of L-BFGS
    agreement: float = 0.1  # tolerance on cosines of rows
    followed: int = 10  # ratio up to which minority rows are held against the model
    harm: float = 0.05  # limit on the fixed classifier's excess of test error on the minority

    @classmethod
    def quick(cls) -> "Config":
        """200 images of a majority class, 200, 20 and 2 of a minority class: two minutes."""
        small = SMALL | {"per_class": 200, "decay": 5e-3, "records": 3}
        return cls(**small, hidden=(128, 64), iterations=400)


def cut(part: Images, ratio: int) -> Images:
    """All images of the first classes, the first 1/ratio of those of each other class."""
    counts = np.bincount(part.labels)
    within = np.arange(len(part.labels)) - np.repeat(np.cumsum(counts) - counts, counts)
    kept = (part.labels < HALF) | (within < counts[part.labels] // ratio)
    return Images(part.pixels[kept], part.labels[kept])


def cosines(rows: np.ndarray) -> tuple[float, float]:
    """Mean cosine of two rows (K, d) of the majority, and of two of the minority."""
    u = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-300)
    pairs = np.triu_indices(HALF, 1)
    majority, minority = ((x @ x.T)[pairs].mean() for x in (u[:HALF], u[HALF:]))
    return float(majority), float(minority)


def measures(seen: Evaluation, tested: Evaluation, decay: float) -> dict[str, np.ndarray]:
    """Cosines of rows and centred means, of the model's, test errors: majority, minority."""
    problem, _ = n02.point(seen, decay, centred=True)
    star = theory.global_minimizer(problem, jax.random.key(0))
    first = np.cumsum(problem.counts) - problem.counts
    means, model = evaluation.class_means(seen), np.asarray(star.H).T[first]
    wrong = tested.logits.argmax(axis=0) != tested.labels
    small = tested.labels >= HALF
    found = {
        "rows": cosines(seen.W),
        "means": cosines(means - means.mean(axis=0)),
        "model_rows": cosines(np.asarray(star.W)),
        "model_means": cosines(model - model.mean(axis=0)),
        "test_error": (wrong[~small].mean(), wrong[small].mean()),
    }
    return {name: np.array(pair, float) for name, pair in found.items()}


def compute(config: Config, progress: Report) -> dict[str, np.ndarray]:
    """<measure> (heads, ratios, 2), majority then minority, and train_error (heads, ratios)."""
    train, test = trainings.images(config)
    method = Recipe("lbfgs", config.iterations, 0, decay=config.decay)
    rows = []
    count = len(HEADS) * len(config.ratios)
    with trainings.trainings("n07", config, progress, count) as queue:
        for head, label in HEADS.items():
            for ratio in config.ratios:
                part = cut(train, ratio)

                def error(model, part=part):
                    return {"train_error": evaluation.evaluate(model, part).error}

                made = trainings.mlp(part, config.hidden, config.seed, head=head)
                name = f"{label}, ratio {ratio}"
                done = queue.run(name, made, part, method, error, config.records, seed=config.seed)
                seen, tested = (evaluation.evaluate(done.model, x) for x in (part, test))
                end = {"train_error": np.array(seen.error)}
                rows.append(end | measures(seen, tested, config.decay))
    shape = len(HEADS), len(config.ratios)
    return {
        name: np.array([row[name] for row in rows]).reshape(*shape, *rows[0][name].shape)
        for name in rows[0]
    }


def check(config: Config, results: dict) -> list[Verdict]:
    """Zero training error; cosines of learned rows against the model's; the fixed classifier."""
    verdicts = []
    rows, model = results["rows"][0], results["model_rows"][0]
    for i, ratio in enumerate(config.ratios):
        ended = bool(results["train_error"][0, i] == 0)
        for k, group in enumerate(("majority", "minority")[: 1 + (ratio <= config.followed)]):
            claim = f"ratio {ratio}: cosine of two {group} rows"
            verdicts.append(judge(claim, rows[i, k], model[i, k], config.agreement, ended))
    worst = float(results["train_error"].max())
    verdicts.append(judge("worst training error at the end", worst, 0, 0))
    rises = float(np.min(np.diff(rows[:, 1])))
    verdicts.append(judge_above("least rise of the minority's cosine with the ratio", rises, 0))
    errors = results["test_error"][:, -1, 1]
    claim = f"ratio {config.ratios[-1]}: test error of the minority, fixed − learned classifier"
    return [*verdicts, judge_below(claim, errors[1] - errors[0], config.harm)]


def draw(config: Config, results: dict) -> dict[str, Figure]:
    """Cosines of rows and of means, test errors, over the ratio."""
    canvas, axes = plots.figure("icml_text", 2.3, 1, 3)
    panels = (
        ("rows", "cosine of two rows of $W$"),
        ("means", "cosine of two centred means"),
        ("test_error", "test error"),
    )
    for ax, (name, label) in zip(axes[0], panels, strict=True):
        for h, head in enumerate(HEADS.values()):
            for k, (group, line) in enumerate((("majority", plots.DASHED), ("minority", "-"))):
                values = results[name][h, :, k]
                text = f"{head} classifier, {group}" if ax is axes[0, 0] else None
                look: dict[str, Any] = {"color": plots.colour(h), "linestyle": line, "marker": "o"}
                ax.plot(config.ratios, values, label=text, **look)
        ax.set(xscale="log", xlabel="ratio of counts", ylabel=label, xticks=config.ratios)
        ax.set_xticks(config.ratios, [str(x) for x in config.ratios])
    cross: dict[str, Any] = {"color": "black", "marker": "x", "linestyle": "none", "zorder": 6}
    for ax, name in zip(axes[0], ("model_rows", "model_means"), strict=False):
        for k in range(2):
            text = "model, learned classifier" if k and ax is axes[0, 0] else None
            ax.plot(config.ratios, results[name][0, :, k], label=text, **cross)
    plots.letters(axes.flat)
    canvas.legend(loc="outside lower center", ncols=3)
    return {"": canvas}


if __name__ == "__main__":
    sys.exit(runner.main("n07_unequal_images", flags=trainings.Options))
