"""NC1–NC4 of a PyTorch network: collect the inputs of its last layer, measure, keep."""

import numpy as np
import torch

import ufm


@torch.no_grad()
def collect(network, head, loader):
    """NumPy arrays W, features (N, d), labels, and b if there is a bias: what goes into `head`."""
    features, labels = [], []
    hook = head.register_forward_pre_hook(lambda _, inputs: features.append(inputs[0].cpu()))
    network.eval()
    for x, y in loader:
        network(x)
        labels.append(y)
    hook.remove()
    arrays = {"W": head.weight, "features": torch.cat(features).flatten(1)}
    arrays |= {"labels": torch.cat(labels)} | ({} if head.bias is None else {"b": head.bias})
    return {name: x.cpu().numpy() for name, x in arrays.items()}


def measure(arrays):
    """NC1–NC4 of what `collect` gives."""
    W, features, labels = (arrays[name] for name in ("W", "features", "labels"))
    return ufm.metrics.collapse(W, features.T, arrays.get("b"), labels)


def example():
    """A small network on three noisy blobs, before and after training."""
    torch.manual_seed(0)
    labels = torch.arange(3).repeat_interleave(40)
    x = 2 * torch.eye(20)[labels] + torch.randn(120, 20)
    head = torch.nn.Linear(64, 3)
    hidden = [torch.nn.Linear(20, 64), torch.nn.ReLU(), torch.nn.Linear(64, 64), torch.nn.ReLU()]
    network = torch.nn.Sequential(*hidden, head)
    loader = [(x, labels)]
    options = {"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-3}
    optimizer = torch.optim.SGD(network.parameters(), **options)
    before = measure(collect(network, head, loader))
    network.train()
    for _ in range(2000):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(network(x), labels).backward()
        optimizer.step()
    arrays = collect(network, head, loader)
    np.savez("features.npz", **arrays)  # for `ufm measure features.npz`
    return before, measure(arrays)


if __name__ == "__main__":
    for when, collapse in zip(("before", "after"), example(), strict=True):
        print(f"{when}: NC1 {collapse.nc1:.3g}, NC2 {collapse.nc2:.3g}, NC3 {collapse.nc3:.3g}")
