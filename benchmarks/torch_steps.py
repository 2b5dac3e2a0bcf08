"""The contestants of the descent steps that are PyTorch's; imported where PyTorch is installed."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

import ufm

KINDS = ("eager", "compiled", "fused")


def steps(
    problem: ufm.Problem, start: ufm.Params, kind: str, rate: float, momentum: float
) -> Callable[[int], Any]:
    """Steps of heavy ball; returns the parameters after `count` of them from the start.

    As a user would write it: an `nn.Parameter` of features, `nn.Linear`, `nn.CrossEntropyLoss`,
    `optim.SGD` with a parameter group a decay. kind: "eager"; "compiled", the loss and the
    optimiser's step under `torch.compile`; "fused", the loss compiled and `SGD(fused=True)`.
    """
    labels = torch.tensor(problem.labels, dtype=torch.long)
    head, criterion = torch.nn.Linear(problem.d, problem.K), torch.nn.CrossEntropyLoss()
    features = torch.nn.Parameter(torch.empty(problem.N, problem.d))
    parameters = (head.weight, features, head.bias)
    decays = (problem.lam_W, problem.lam_H, problem.lam_b)
    groups: list[dict[str, Any]] = [
        {"params": [p], "weight_decay": float(lam)}
        for p, lam in zip(parameters, decays, strict=True)
    ]
    optimizer = torch.optim.SGD(groups, lr=rate, momentum=momentum, fused=kind == "fused")
    origin = [torch.tensor(np.asarray(x)) for x in (start.W, start.H.T, start.b)]

    def loss():
        return criterion(head(features), labels)

    update: Any = optimizer.step
    if kind != "eager":
        loss = torch.compile(loss)
    if kind == "compiled":
        update = torch.compile(update)

    def run(count: int):
        with torch.no_grad():
            for parameter, x in zip(parameters, origin, strict=True):
                parameter.copy_(x)
                optimizer.state[parameter].get("momentum_buffer", torch.empty(0)).zero_()
        for _ in range(count):
            optimizer.zero_grad()
            loss().backward()
            update()
        return head.weight.detach().numpy(), features.detach().numpy().T

    return run


def products(problem: ufm.Problem, start: ufm.Params) -> Callable[[int], Any]:
    """The floor: W H, G Hᵀ and Wᵀ G into arrays that are there already, nothing else."""
    W, H = torch.tensor(np.asarray(start.W)), torch.tensor(np.asarray(start.H))
    Z, dW, dH = torch.empty(problem.K, problem.N), torch.empty_like(W), torch.empty_like(H)

    def run(count: int):
        for _ in range(count):
            torch.mm(W, H, out=Z)
            torch.mm(Z, H.T, out=dW)
            torch.mm(W.T, Z, out=dH)

    return run


def on_threads(run: Callable[[int], Any], threads: int) -> Callable[[int], Any]:
    """The run with so many threads of PyTorch."""

    def limited(count: int):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            return run(count)
        finally:
            torch.set_num_threads(before)

    return limited
