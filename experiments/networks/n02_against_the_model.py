"""A trained network held against the unconstrained feature model: decay, norms, margins, gap.

Claim. The last layer of a network trained to the end, (W, H, b), is nearly a global minimum of the
unconstrained feature model with one decay λ_H that is not fitted: at a critical point of the model
λ_W‖W‖² = λ_H‖H‖², so λ_H := λ_W‖W‖²/‖H‖², λ_W being the network's weight decay. With it the closed
forms give the network's ‖W‖, margin and objective; the certified gap to the model's global minimum
falls by an order of magnitude on the way; and the random start is as unstable as the model's
origin, whose Hessian has Morse index d(K−1).

Features behind a ReLU are nonnegative, so their mean μ_G is not zero, as it is in the model.
Cross-entropy is invariant to it: h_i − μ_G with b + Wμ_G has the same logits. Both points are
shown; the claim is about the centred one, with a free bias (λ_b = 0), which absorbs Wμ_G. The model
with H ≥ 0 needs no centring, and its closed form is nearer to the network than that of free
features; its index is that of the Hessian with the zeros of H held fixed.

Source. Zhu et al. 2021 (arXiv 2105.02375), theorem 3.1 and section 3; Papyan, Han and Donoho 2020.

Reproduces. No figure: compares the model of Zhu et al. with the networks that it is to explain, by
its certificate and closed forms.

Shown. K = 10, 100 training images per class, λ_W = 0.01 (quick form). Two networks, one per row;
against the epoch: certified gap, ‖W‖, margin and Morse index of the last layer's Hessian (black,
features free; in colour, with H ≥ 0). Dashed: predictions of the model from λ_H = λ_W‖W‖²/‖H‖² at
that epoch, with free features for those of the network as they are or centred, and with H ≥ 0.
Grey: the first epoch with a training error of zero, in (d) and (h) also the index d(K−1) at the
origin.

Refuted by norms, margins or values off the closed forms by more than the tolerances, a gap that
does not fall, a model with H ≥ 0 that explains the norm of W no better, or class means that end far
from its geometry (orthogonal, their mean with 1/K of the features' square): a quarter of the
distance at the start is allowed. The index at the end is shown without a claim: the network need
not be critical in H.
"""

import dataclasses
import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

import ufm
from experiments import runner
from experiments.networks import trainings
from experiments.networks.trainings import SMALL, Setting
from experiments.runner import Report
from experiments.verdicts import Verdict, judge, judge_below
from ufm import Params, Problem, plots, theory
from ufm.networks import evaluation, models
from ufm.networks.evaluation import Evaluation
from ufm.networks.training import Recipe

RUNS = {"lbfgs": "MLP, L-BFGS", "sgd": "ResNet, SGD"}
NEARER = 0.25  # share of the distance from the geometry of H ≥ 0 at the start, allowed at the end


@dataclass(frozen=True)
class Config(Setting):
    """An MLP by L-BFGS and a ResNet by SGD; the features of some training images are compared."""

    rate: float = 0.05  # step at the start of SGD
    hidden: tuple[int, ...] = (1024, 512)  # widths of the MLP
    iterations: int = 2000  # of L-BFGS
    # Relative tolerances on ‖W‖, margin and objective: full batch, and in minibatches.
    agreement: tuple[float, float] = (0.05, 0.2)
    gap_fall: float = 0.1  # limit on the certified gap at the end over that at the start

    @classmethod
    def quick(cls) -> "Config":
        """A small ResNet and MLP on 1,000 images: two minutes on two cores."""
        return cls(**SMALL, records=20, hidden=(256, 64), iterations=480)


def point(seen: Evaluation, decay: float, centred: bool) -> tuple[Problem, Params]:
    """The problem that the network's balance λ_W‖W‖²/‖H‖² names, and the network's point in it."""
    W, H, b = seen.W, seen.H, seen.b
    if centred:
        mean = H.mean(axis=1, keepdims=True)
        H, b = H - mean, b + (W @ mean)[:, 0]
    lam_b = 0.0 if centred else decay
    return Problem.from_features(W, H, b, seen.labels, decay, lam_b=lam_b)


def margin(seen: Evaluation) -> float:
    """Mean of z_y − z_j over samples and wrong classes j, the model's t at its minimum."""
    Z = seen.logits
    own = np.take_along_axis(Z, seen.rows[None], axis=0)[0]
    return float(np.mean(own - Z.mean(axis=0)) * len(Z) / (len(Z) - 1))


def compare(seen: Evaluation, decay: float, index: bool = True) -> dict[str, float]:
    """The network, what the closed forms predict of it, and what is certified; raw and centred."""
    row = {"loss": seen.loss, "error": seen.error, "margin": margin(seen)}
    row["norm_W"] = float(np.linalg.norm(seen.W))
    mean = seen.H.mean(axis=1)
    row["mean_share"] = float(seen.H.shape[1] * np.sum(mean**2) / np.sum(seen.H**2))
    for kind in ("raw", "centred"):
        problem, params = point(seen, decay, kind == "centred")
        certificate = ufm.certify(problem, params)
        measured = {
            "lam_H": problem.lam_H,
            "value": certificate.value,
            "gap": certificate.gap,
            "f_star": theory.global_value(problem),
            "norm_W_star": theory.norms(problem).W,
            "margin_star": theory.margin(problem),
        }
        row |= {f"{kind}_{name}": float(x) for name, x in measured.items()}
    if index:
        row["index"] = float(ufm.hessian.inertia(*point(seen, decay, True)).negative)
    return row


def behind_a_relu(seen: Evaluation, decay: float, index: bool = True) -> dict[str, float]:
    """The network, as it is, against the model with H ≥ 0: what `compare` tells, and the geometry.

    There class means are orthogonal and equally long, so that the mean of all features has a share
    of 1/K in their mean square (Dang et al. 2024, arXiv 2401.02058).
    """
    problem, params = point(seen, decay, False)
    problem = dataclasses.replace(problem, features="nonnegative")
    certificate = ufm.certify(problem, params)
    means = np.stack([seen.H[:, seen.rows == k].mean(axis=1) for k in range(problem.K)])
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    measured = {
        "value": certificate.value,
        "gap": certificate.gap,
        "f_star": theory.global_value(problem),
        "norm_W_star": theory.norms(problem).W,
        "margin_star": theory.margin(problem),
        "cosine": (np.sum(means @ means.T) - problem.K) / (problem.K * (problem.K - 1)),
    }
    if index:
        measured["index"] = ufm.hessian.inertia(problem, params).negative
    return {f"relu_{name}": float(x) for name, x in measured.items()}


def judge_relu(label: str, at: dict[str, np.ndarray], ended: bool) -> list[Verdict]:
    """H ≥ 0 against free features in ‖W‖; the geometry of the means that it tells.

    Args:
        label: of the run.
        at: of `compare` and `behind_a_relu`, from the start to the end.
        ended: whether the training error came to zero.
    """
    relu, raw = (
        abs(at[f"{kind}_norm_W_star"][-1] / at["norm_W"][-1] - 1) for kind in ("relu", "raw")
    )
    claim = f"{label}: H ≥ 0 over free features, misfit in the norm of W"
    verdicts = [judge_below(claim, relu / raw, 1, ended)]
    for title, name, predicted in (
        ("share of the mean in the features, 1/K", "mean_share", 1 / len(trainings.CLASSES)),
        ("cosine of two class means, uncentred", "relu_cosine", 0.0),
    ):
        first, last = at[name][0], at[name][-1]
        allowed = NEARER * abs(first - predicted)
        verdicts.append(judge(f"{label}: {title}", last, predicted, allowed, ended))
    return verdicts


def compute(config: Config, progress: Report) -> dict[str, np.ndarray]:
    """History of both runs: <run>_epoch, <run>_<what> (records,), and the widths d."""
    train, _ = trainings.images(config)

    def measure(model) -> dict[str, float]:
        seen = evaluation.evaluate(model, train)
        return compare(seen, config.decay) | behind_a_relu(seen, config.decay)

    results: dict[str, np.ndarray] = {}
    with trainings.trainings("n02", config, progress, len(RUNS)) as queue:
        for run, label in RUNS.items():
            model, method = _network(config, run, train)
            done = queue.run(label, model, train, method, measure, config.records, seed=config.seed)
            results |= {f"{run}_{name}": values for name, values in done.history.items()}
            results[f"{run}_d"] = np.array(models.classifier(model)[0].shape[1])
    return results


def _network(config: Config, run: str, train) -> tuple[Any, Recipe]:
    if run == "sgd":
        method = Recipe("sgd", config.epochs, config.batch_size, config.rate, config.decay)
        return trainings.resnet(config, train), method
    method = Recipe("lbfgs", config.iterations, 0, decay=config.decay)
    return trainings.mlp(train, config.hidden, config.seed), method


def check(config: Config, results: dict) -> list[Verdict]:
    """The end of both runs against the closed forms at the balance's λ_H, and the gap's fall."""
    verdicts = []
    K = len(trainings.CLASSES)
    for (run, label), tolerance in zip(RUNS.items(), config.agreement, strict=True):
        at = {name.removeprefix(f"{run}_"): x for name, x in results.items() if run in name}
        ended = at["error"][-1] == 0
        for title, measured, predicted in (
            ("‖W‖", at["norm_W"][-1], at["centred_norm_W_star"][-1]),
            ("margin", at["margin"][-1], at["centred_margin_star"][-1]),
            ("objective, nats", at["centred_value"][-1], at["centred_f_star"][-1]),
        ):
            claim = f"{label}: {title}, λ_H from the balance of norms"
            verdicts.append(judge(claim, measured, predicted, tolerance * predicted, ended))
        verdicts += judge_relu(label, at, ended)
        fall = at["centred_gap"][-1] / at["centred_gap"][0]
        claim = f"{label}: certified gap at the end / at the start"
        verdicts.append(judge_below(claim, fall, config.gap_fall, ended))
        claim, d = f"{label}: index at the start, d(K−1)", int(at["d"])
        verdicts.append(judge(claim, at["index"][0], d * (K - 1), 0))
    return verdicts


def draw(_: Config, results: dict) -> dict[str, Figure]:
    """Gap, norm, margin and index over epochs: network against closed form."""
    canvas, axes = plots.figure("icml_text", 3.7, 2, 4, sharex=True)
    for row, (run, label) in zip(axes, RUNS.items(), strict=True):
        at = {name.removeprefix(f"{run}_"): x for name, x in results.items() if run in name}
        _draw_run(row, at)
        row[0].set_ylabel(f"{label}\ngap, nats")
    for ax in axes[1]:
        ax.set_xlabel("epoch + 1")
    plots.letters(axes.flat)
    shown: dict[str, Any] = {}
    for ax in axes[0]:
        lines, names = ax.get_legend_handles_labels()
        shown |= dict(zip(names, lines, strict=True))
    canvas.legend(shown.values(), shown.keys(), loc="outside lower center", ncols=3)
    return {"": canvas}


def _draw_run(row: np.ndarray, at: dict) -> None:
    """The four panels of one run; a grey line where zero training error begins."""
    epochs, start = at["epoch"] + 1, trainings.zero_from(at["error"])
    for index, kind in enumerate(("raw", "centred", "relu")):
        name = ("features as they are", r"features centred", r"$H\geq0$")[index]
        plots.curves(row[0], epochs, at[f"{kind}_gap"], f"gap, {name}", index)
        look: dict[str, Any] = {"color": plots.colour(index), "linestyle": plots.DASHED}
        plots.prediction(row[1], epochs, at[f"{kind}_norm_W_star"], f"model, {name}", **look)
        plots.prediction(row[2], epochs, at[f"{kind}_margin_star"], **look)
    plots.curves(row[1], epochs, at["norm_W"], "network", color="black", linestyle="-")
    plots.curves(row[2], epochs, at["margin"], color="black", linestyle="-")
    plots.curves(row[3], epochs, at["index"], color="black", linestyle="-")
    look = {"color": plots.colour(2), "linestyle": "-"}
    plots.curves(row[3], epochs, at["relu_index"], r"index, $H\geq0$", **look)
    plots.level(row[3], int(at["d"]) * (len(trainings.CLASSES) - 1), "origin, $d(K-1)$")
    names = ("gap, nats", r"$\|W\|$", "margin $t$", "Morse index")
    for ax, name in zip(row, names, strict=True):
        ax.set(xscale="log", ylabel=name)
        if start is not None:
            ax.axvline(epochs[start], color=plots.GREY, linewidth=0.7, zorder=1)
    row[0].set_yscale("log")
    row[0].yaxis.set_minor_formatter(NullFormatter())
    row[2].set_ylim(bottom=0)


if __name__ == "__main__":
    sys.exit(runner.main("n02_against_the_model", flags=trainings.Options))
