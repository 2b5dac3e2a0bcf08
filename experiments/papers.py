"""What each paper states, which scripts check it, what they found, and what no script checks.

The page docs/papers.md is written from this list, the titles of the scripts and the verdicts beside
the figures, whenever a figure is drawn. A script names its papers in its docstring; the tests
compare these ids with the list.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from experiments.tables import counted
from ufm.runs import claims


class Paper(NamedTuple):
    """A paper, by what of it bears on the model.

    authors: and year, if the scripts name them.  states: what it proves or observes.
    checked: for each script, by its number, parts of the claims of its verdicts; () takes all.
    left: what no script here checks.
    """

    authors: str
    states: str
    checked: Mapping[str, tuple[str, ...]]
    left: str


PAPERS = {
    "2105.02375": Paper(
        "Zhu et al. 2021",
        "For equal classes and d > K every critical point of the unconstrained feature model under "
        "cross-entropy is a strict saddle or a global minimiser, and the minimisers are simplex "
        "ETFs (theorems 3.1 and 3.2); networks show it under three optimisers, with random labels, "
        "and with a fixed classifier (section 5).",
        {
            **dict.fromkeys((f"c{i:02}" for i in range(1, 11)), ()),
            "c12": ("cross-entropy: ",),
            **dict.fromkeys(("n01", "n02", "n03", "n04"), ()),
            "n06": ("at the end / at", "NC4", "λ_H", "certified gap"),
        },
        "MNIST, CIFAR-10 and CIFAR-100, ResNet-50 and the other experiments at full size: the "
        "networks here are small and trained on FashionMNIST.",
    ),
    "2407.10702": Paper(
        "",
        "The landscape is benign for d = K as well.",
        {"c08": (), "c09": (), "c10": ("d = K:",)},
        "Its proof. Derivations proves that the landscape is benign for d ≥ K−1; c08 checks it.",
    ),
    "2106.15933": Paper(
        "Jacot et al. 2021",
        "From a small initialisation, gradient descent on deep linear networks passes from saddle "
        "to saddle.",
        {"c04": ("slow passages",)},
        "Networks of more than two linear layers, and the limit of a vanishing initialisation.",
    ),
    "2203.01238": Paper(
        "Zhou et al. 2022",
        "Under the squared error the minimisers are simplex ETFs, or orthogonal frames without a "
        "bias, and the landscape is benign for d ≥ K.",
        {"c11": (), "c12": ("squared: ",), "c15": ("squared",)},
        "The rescaled loss (k, M) on networks. `SquaredError(own, shift)` has descents and "
        "certificates here, but no closed form.",
    ),
    "2202.08087": Paper(
        "Tirer and Bruna 2022",
        "The squared error with and without a bias: simplex ETF and orthogonal frame; extensions "
        "by a layer and by ReLU.",
        {"c11": ()},
        "The added layer and the ReLU features.",
    ),
    "2606.00344": Paper(
        "",
        "As the decay of the bias grows, the frame of a free bias changes into that of no bias.",
        {"c11": ("passage",)},
        "Everything except the cosine of class means as a function of the decay of the bias.",
    ),
    "2210.02192": Paper(
        "Zhou et al. 2022",
        "Cross-entropy, label smoothing, focal and squared losses have the same geometry at the "
        "minimum.",
        {
            "c12": ("smoothing 0.1: ", "focal 2: ", "cross-entropy: "),
            "c15": ("smoothing",),
        },
        "That test accuracies agree across losses, and the landscape of the focal loss where it is "
        "not convex.",
    ),
    "2402.03979": Paper(
        "",
        "With label smoothing networks collapse faster, and the loss is better conditioned.",
        {"c12": ("smoothing",)},
        "Its network experiments. Here WᵀSW is better conditioned with smoothing, ∇²f worse.",
    ),
    "2505.05813": Paper(
        "",
        "Under binary cross-entropy the minimiser is a simplex ETF.",
        {"c12": ("binary: ",)},
        "A decayed bias, which adds a mode, and its network experiments.",
    ),
    "2309.09725": Paper(
        "Hong and Ling 2023",
        "For unequal classes minority classes merge iff √m ≤ Nμ.",
        {"c13": ("plain", "threshold in λ", "of the minority 1% above"), "n07": ("cosine",)},
        "Its model with ReLU features, and its network experiments at full size.",
    ),
    "2401.02058": Paper(
        "Dang et al. 2024",
        "With nonnegative features, cross-entropy, no bias and unequal classes the class means at "
        "the minimum are orthogonal, with closed forms of lengths, angles and thresholds.",
        {"c16": ()},
        "Its network experiments. The local minima with classes switched off are from here.",
    ),
    "2101.12699": Paper(
        "Fang et al. 2021",
        "In the layer-peeled model minority classes merge at a finite ratio of the counts.",
        {"c13": ("layer-peeled",), "n07": ("cosine",)},
        "Its constrained form (the ball E_W, E_H in place of decays) and its network experiments "
        "at full size.",
    ),
    "2208.05512": Paper(
        "Thrampoulidis et al. 2022",
        "As the decay tends to 0, the direction of the logits tends to SELI, whatever the counts.",
        {"c13": ("SELI",)},
        "The path of gradient descent without decay, and step-imbalanced networks.",
    ),
    "2310.15903": Paper(
        "Li et al. 2023",
        "Under the pick-all-labels loss classes form a simplex ETF, and the mean of a tag set is a "
        "scaled average of those of its tags.",
        {"c14": ("tags",)},
        "Unequal counts among sets of one size, and its network experiments.",
    ),
    "2402.06171": Paper(
        "Fisher, Meng and Papyan 2024",
        "Under mixup the features of mixtures lie in the plane of their two classes, and are not "
        "mixtures of class means.",
        {"c14": ("mixtures",)},
        "Continuous mixing ratios, mixtures within a class, and its network experiments.",
    ),
    "2408.15417": Paper(
        "",
        "With soft labels the log-odds on the support stay finite, and a low-rank part grows.",
        {"c14": ("soft labels",)},
        "The direction and rank of the growing part, and language models.",
    ),
    "2409.04180": Paper(
        "",
        "In regression WWᵀ is √(λ_H/λ_W)[Σ^½ − √(λ_Wλ_H)]₊, Σ the covariance of the targets.",
        {"c14": ("regression",)},
        "Its network experiments; `ufm.metrics.regression` measures networks.",
    ),
    "2310.05351": Paper(
        "Jiang et al. 2023",
        "With more classes than d+1 features tend to softmax codes, which maximise the margin of "
        "each class against the hull of the others: the polygon, the orthoplex.",
        {"c17": ()},
        "The limit itself: c17 has a decay, with which other configurations can be lower. Its "
        "sphere constraint and its network experiments.",
    ),
    "2603.20587": Paper(
        "",
        "Codes below d = K−1.",
        {"c17": ("lowest",)},
        "Everything except which configuration is lowest at one decay.",
    ),
    "2502.10691": Paper(
        "Harun, Gallardo and Kanan 2025",
        "Collapse improves the detection of unseen classes and impairs transfer to them.",
        {"n05": ()},
        "Its large networks and data sets.",
    ),
    "2210.17020": Paper(
        "He and Su 2023",
        "In trained networks the logarithm of NC1 falls linearly with the layer.",
        {"n06": ("over layers",)},
        "Its other architectures and data sets, and how the law grows during training.",
    ),
    "2203.09081": Paper(
        "Yang et al. 2022",
        "On unequal classes a classifier fixed to a simplex ETF need not be worse than a learned "
        "one.",
        {"n07": ("fixed − learned",)},
        "Its dot-regression loss and its long-tailed data sets.",
    ),
    "2010.03759": Paper(
        "Liu et al. 2020",
        "Energy scores detect samples of unseen classes.",
        {"n05": ("detection",)},
        "The comparison with other scores: this one is used here, not judged.",
    ),
}  # fmt: skip
HEAD = """# Papers

What each paper states, in our words, which script checks it and with what outcome, and what no
script checks. `python -m experiments --paper ID` runs the scripts of a paper. This page is written
from `experiments/papers.py` and the stored verdicts whenever a figure is drawn.

"""


def page(listed: Mapping[str, Mapping[str, Any]]) -> str:
    """The page as Markdown.

    Args:
        listed: what is told of every figure, by its stem, as `gallery.listed` reads it.
    """
    told = {stem.split("_")[0]: found for stem, found in listed.items()}
    parts = [_entry(name, paper, told) for name, paper in PAPERS.items()]
    return HEAD + "\n\n".join(parts) + "\n"


def _entry(name: str, paper: Paper, told: Mapping[str, Mapping[str, Any]]) -> str:
    """A heading, what the paper states, a row for each script, what is left."""
    lines = [f"## arXiv {name}", ""]
    by = f"{paper.authors}, " if paper.authors else ""
    lines += [f"{by}[arXiv {name}](https://arxiv.org/abs/{name}). {paper.states}", ""]
    lines += ["| script | checked here | verdicts |", "|---|---|---|"]
    for script, claim_parts in paper.checked.items():
        if script in told:
            found = told[script]
            rows = chosen(found["verdicts"], claim_parts)
            title = found["title"].replace("|", "\\|")
            if claim_parts:
                title += f" ({len(rows)} of {len(found['verdicts'])} verdicts)"
            verdicts = counted([claims.read(row) for row in rows])
            lines.append(f"| [{script}](../figures/README.md#{script}) | {title} | {verdicts} |")
    return "\n".join([*lines, "", f"**Not checked.** {paper.left}"])


def chosen(rows: Sequence[Mapping[str, Any]], parts: Sequence[str]) -> list[Mapping[str, Any]]:
    """The verdicts with one of some parts in their claim; all where none is given."""
    return [row for row in rows if not parts or any(part in row["claim"] for part in parts)]
