"""hessian-eigenthings' Lanczos over PyTorch's double backward; imported where both are."""

import numpy as np
import torch
from hessian_eigenthings.algorithms.lanczos import lanczos
from hessian_eigenthings.operators.base import LambdaOperator

import ufm
from ufm import hessian


def product(problem: ufm.Problem, point: ufm.Params) -> LambdaOperator:
    """The Hessian by double backward of the objective in PyTorch, in ufm's order of variables."""
    K, d, N = problem.K, problem.d, problem.N
    labels = torch.tensor(problem.labels, dtype=torch.long)
    x = torch.tensor(np.asarray(hessian.flatten(problem, point)), requires_grad=True)
    W, H, b = torch.split(x, [K * d, d * N, K])
    logits = (W.reshape(K, d) @ H.reshape(d, N) + b[:, None]).T
    loss = torch.nn.functional.cross_entropy(logits, labels)
    for part, lam in ((W, problem.lam_W), (H, problem.lam_H), (b, problem.lam_b)):
        loss = loss + lam / 2 * torch.sum(part**2)
    (slope,) = torch.autograd.grad(loss, x, create_graph=True)

    def times(v):
        return torch.autograd.grad(slope, x, v, retain_graph=True)[0]

    return LambdaOperator(times, problem.size, dtype=torch.float64)


def lowest(
    operator: LambdaOperator, pairs: int, steps: int, threads: int
) -> tuple[tuple[np.ndarray, np.ndarray], int]:
    """So many lowest eigenpairs, by Lanczos with full reorthogonalisation."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found = lanczos(operator, k=pairs, max_iter=steps, reorthogonalize=True, which="SA", seed=0)
    finally:
        torch.set_num_threads(before)
    return (found.eigenvalues.numpy(), found.eigenvectors.numpy()), found.iterations
