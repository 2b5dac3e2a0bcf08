"""Controlling collapse: strong collapse helps to detect unseen classes and harms transfer to them.

Claim. An entropy bonus on the features of the encoder weakens collapse, a projector fixed to a
simplex ETF strengthens it. Over the layers of networks trained with either, strong collapse (small
NC1) comes with better detection of classes that were held out of training, and with worse transfer
to them: log NC1 correlates positively with the detection error (FPR95) and negatively with the
error of a linear probe on the held-out classes.

Source. Harun, Gallardo and Kanan 2025 (arXiv 2502.10691): R = 0.77 and −0.60 for large networks;
Kozachenko and Leonenko 1987 for the entropy: mean log distance to the nearest neighbour in a batch.

Reproduces. The correlations of Harun et al. for small networks on FashionMNIST, with held-out
classes instead of other data sets.

Shown. K = 6 classes in training, four held out, 200 images per class, weight decay 5e-3 (quick
form). (a) NC1 of every
layer, two starts per form; (b) detection error and (c) transfer error of every layer against its
NC1, with least-squares lines in log NC1. R is the correlation with log NC1; the interval in
brackets (Fisher, 95 %) treats layers as independent, which those of one network are not.

Refuted by correlations of the other sign. Images of unseen classes are detected by the energy
−log Σ exp z of a linear classifier on the features of the layer (Liu et al. 2020, arXiv
2010.03759).

What to know. All stages are equally wide, because narrow early layers transfer badly for lack of
width: with 8, 16, 32 and 64 channels the second correlation is +0.70 (three seeds, bonus 0.05).
That form was tried first and this one was chosen afterwards, so the sign of the second correlation
is an observation here, not a prediction. In the quick form the trade-off appears between layers,
not between forms: the bonus weakens the collapse of the encoder fourfold, and yet its transfer
error does not fall (0.14 against 0.13).
"""

import sys
import warnings
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import nnx
from matplotlib.figure import Figure
from scipy.special import logsumexp
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score, roc_curve
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from experiments import runner
from experiments.networks import trainings
from experiments.networks.trainings import SMALL, Setting
from experiments.runner import Report
from experiments.verdicts import Verdict, judge_above, judge_below
from ufm import metrics, plots
from ufm.networks import data, evaluation, training
from ufm.networks.data import Images
from ufm.networks.training import Recipe

# entropy bonus, projector, how it is called
FORMS = (
    (False, False, "plain"),
    (True, False, "entropy"),
    (False, True, "projector"),
    (True, True, "both"),
)
MEASURES = ("nc1", "auroc", "fpr95", "probe_error")


class Parts(NamedTuple):
    """Training and test images of the classes that are trained on, and of those held out."""

    train: Images
    test: Images
    foreign_train: Images
    foreign_test: Images


@dataclass(frozen=True)
class Config(Setting):
    """A ResNet in four forms; the first classes are trained on, the others held out."""

    widths: tuple[int, ...] = (256, 256, 256, 256)  # channels of the stages, all alike
    classes: int = 6  # trained on: 0, …, classes − 1
    rate: float = 0.05  # step of SGD at the start
    entropy: float = 0.3  # weight of the entropy bonus
    starts: int = 3  # seeds of each form
    iterations: int = 2000  # limit of the linear classifiers' solver

    @classmethod
    def quick(cls) -> "Config":
        """A small ResNet with four stages, 1,200 images: minutes on two cores."""
        small = SMALL | {"per_class": 200, "test_per_class": 200, "widths": (32, 32, 32, 32)}
        return cls(**small | {"epochs": 60, "records": 3, "decay": 5e-3}, starts=2)


def spread(model: Any, pixels, labels, weight: float):
    """Cross-entropy − weight · mean_i log min_{j≠i} ‖u_i − u_j‖, u the normalised features.

    The features are the encoder's: of the last stage, before a projector.
    """
    seen = model.layers(pixels)
    features = seen[-1] if model.projector is None else seen[-2]
    u = features / jnp.sqrt(jnp.sum(jnp.square(features), axis=1, keepdims=True) + 1e-12)
    squares = jnp.sum(jnp.square(u[:, None] - u[None]), axis=-1)
    nearest = jnp.min(squares + 4 * jnp.eye(len(u), dtype=u.dtype), axis=1)
    logits = model.head(seen[-1])
    own = jnp.take_along_axis(nnx.log_softmax(logits), labels[:, None], axis=1)
    return -jnp.mean(own) - weight * jnp.mean(jnp.log(nearest + 1e-8)) / 2


def images(config: Config) -> Parts:
    """All four parts, normalised as the training images are, labels from 0 in each."""
    source, classes = data.load(), tuple(range(10))
    kept, held = classes[: config.classes], classes[config.classes :]
    chosen = [
        data.select(part, count, group, config.seed)
        for group in (kept, held)
        for part, count in ((source.train, config.per_class), (source.test, config.test_per_class))
    ]
    return Parts(*data.normalise(*chosen, padding=config.padding))


def linear_classifier(H: np.ndarray, labels: np.ndarray, limit: int):
    """Multinomial logistic regression on standardised features (samples as columns of H)."""
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=limit))
    with warnings.catch_warnings():
        # One that stops at its limit is a slightly worse classifier, no error.
        warnings.simplefilter("ignore", ConvergenceWarning)
        return model.fit(H.T, labels)


def detection(native: np.ndarray, foreign: np.ndarray) -> tuple[float, float]:
    """(AUROC, FPR95) of scores that should be larger for foreign samples.

    FPR95: share of native samples taken for foreign where 95 % of the foreign ones are found.
    """
    truth = np.repeat((0, 1), (len(native), len(foreign)))
    scores = np.concatenate((native, foreign))
    false, true, _ = roc_curve(truth, scores)
    return float(roc_auc_score(truth, scores)), float(false[np.argmax(true >= 0.95)])


def judge_layers(model: Any, parts: Parts, limit: int) -> np.ndarray:
    """(layers, measures): NC1 on training images, detection, error of the linear probe."""
    seen = [evaluation.evaluate(model, part) for part in parts]
    labels, K, rows = parts.train.labels, len(seen[0].b), []
    for H, test, foreign, probed in zip(*(part.layers for part in seen), strict=True):
        nc1 = metrics.collapse(np.zeros((K, len(H))), H, np.zeros(K), labels).nc1
        native = linear_classifier(H, labels, limit)
        energies = [-logsumexp(native.decision_function(x.T), axis=1) for x in (test, probed)]
        probe = linear_classifier(foreign, parts.foreign_train.labels, limit)
        error = 1 - probe.score(probed.T, parts.foreign_test.labels)
        rows.append((nc1, *detection(*energies), error))
    return np.array(rows)


def compute(config: Config, progress: Report) -> dict[str, np.ndarray]:
    """Measures of every layer (runs, layers), NaN where a form has no projector; form (runs,)."""
    parts = images(config)
    method = Recipe("sgd", config.epochs, config.batch_size, config.rate, config.decay)

    def measure(model) -> training.Record:
        errors = [evaluation.evaluate(model, part).error for part in parts[:2]]
        return {"train_error": errors[0], "test_error": errors[1]}

    def bonus(model, pixels, labels):
        return spread(model, pixels, labels, config.entropy)

    layers = len(config.widths) + 1
    rows, ends = [], []
    with trainings.trainings("n05", config, progress, config.starts * len(FORMS)) as queue:
        for seed in range(config.seed, config.seed + config.starts):
            for entropy, projector, label in FORMS:
                rngs = nnx.Rngs(seed)
                model = trainings.resnet(config, parts.train, projector=projector, rngs=rngs)
                objective = bonus if entropy else training.cross_entropy
                done = queue.run(
                    label,
                    model,
                    parts.train,
                    method,
                    measure,
                    config.records,
                    seed=seed,
                    objective=objective,
                )
                found = judge_layers(done.model, parts, config.iterations)
                rows.append(
                    np.pad(found, ((0, layers - len(found)), (0, 0)), constant_values=np.nan)
                )
                ends.append((done.history["train_error"][-1], done.history["test_error"][-1]))
    results = dict(zip(MEASURES, np.moveaxis(np.array(rows), -1, 0), strict=True))
    form = np.tile(np.arange(len(FORMS)), config.starts)
    errors = dict(zip(("train_error", "test_error"), np.array(ends).T, strict=True))
    return results | errors | {"form": form}


def correlation(results: dict, name: str) -> float:
    """Pearson's R of log NC1 and a measure, over all layers of all runs."""
    there = np.isfinite(results["nc1"])
    return float(np.corrcoef(np.log(results["nc1"][there]), results[name][there])[0, 1])


def check(config: Config, results: dict) -> list[Verdict]:
    """Signs of the two correlations, and what bonus and projector do to the encoder's NC1."""
    form, encoder = results["form"], len(config.widths) - 1
    verdicts = []
    for name, title, judge_side in (
        ("fpr95", "detection error (FPR95)", judge_above),
        ("auroc", "AUROC of detection", judge_below),
        ("probe_error", "transfer error", judge_below),
    ):
        claim = f"correlation of log NC1 and {title} over layers"
        verdicts.append(judge_side(claim, correlation(results, name), 0))
    nc1 = [np.exp(np.log(results["nc1"][form == i, encoder]).mean()) for i in range(len(FORMS))]
    claim = "encoder's NC1, plain / with the entropy bonus (weaker collapse)"
    verdicts.append(judge_below(claim, nc1[0] / nc1[1], 0.95))
    projected = np.exp(np.log(results["nc1"][form == 3, encoder + 1]).mean())
    claim = "both: NC1 after the projector / before it"
    verdicts.append(judge_below(claim, projected / nc1[3], 0.95))
    return verdicts


def draw(config: Config, results: dict) -> dict[str, Figure]:
    """NC1 layer by layer, and the two errors against NC1."""
    canvas, axes = plots.figure("icml_text", 2.5, 1, 3)
    form, layers = results["form"], np.arange(1, len(config.widths) + 2)
    for i, (_, _, label) in enumerate(FORMS):
        mine = form == i
        plots.curves(axes[0, 0], layers, results["nc1"][mine], label, i)
        for ax, name in ((axes[0, 1], "fpr95"), (axes[0, 2], "probe_error")):
            plots.points(ax, results["nc1"][mine], results[name][mine], label=label, index=i)
    there = np.isfinite(results["nc1"])
    for ax, name, label in (
        (axes[0, 1], "fpr95", "detection error, FPR95"),
        (axes[0, 2], "probe_error", "transfer error"),
    ):
        x, y = np.log(results["nc1"][there]), results[name][there]
        line = np.polynomial.Polynomial.fit(x, y, 1)
        ends = np.array([x.min(), x.max()])
        ax.plot(np.exp(ends), line(ends), color=plots.GREY, linewidth=0.9)
        ax.set(xscale="log", xlabel="NC1", ylabel=label)
        R, points = correlation(results, name), int(there.sum())
        low, high = np.tanh(np.arctanh(R) + np.array([-1.96, 1.96]) / np.sqrt(points - 3))
        words = f"$R={R:+.2f}$, $[{low:+.2f}, {high:+.2f}]$, {points} layers"
        ax.set_title(words, fontsize="small")
    names = [*map(str, layers[:-1]), "projector"]
    axes[0, 0].set(yscale="log", xlabel="layer", ylabel="NC1, training images", xticks=layers)
    axes[0, 0].set_xticklabels(names)
    plots.letters(axes.flat)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    canvas.legend(handles, labels, loc="outside lower center", ncols=4)
    return {"": canvas}


if __name__ == "__main__":
    sys.exit(runner.main("n05_controlled_collapse", flags=trainings.Options))
