"""`torch.optim.LBFGS` on the model; imports no JAX, whose start-up is not to be charged to it."""

from collections.abc import Callable, Sequence

import torch


def leg(
    parameters: Sequence[torch.nn.Parameter],
    labels: torch.Tensor,
    decays: Sequence[float],
    iterations: int,
) -> Callable[[], float]:
    """A function that takes so many steps, history 10, strong Wolfe, and returns f before them.

    Args:
        parameters: W (K, d), H (d, N) and b (K,), changed in place.
        labels: (N,), 0 … K−1.
        decays: λ_W, λ_H, λ_b.
        iterations: of one call.
    """
    W, H, b = parameters
    optimizer = torch.optim.LBFGS(
        [W, H, b], max_iter=iterations, history_size=10, line_search_fn="strong_wolfe",
        tolerance_grad=0.0, tolerance_change=0.0,
    )  # fmt: skip

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy((W @ H).T + b, labels)
        for x, decay in zip(parameters, decays, strict=True):
            loss = loss + decay / 2 * x.square().sum()
        loss.backward()
        return loss

    return lambda: optimizer.step(closure).item()
