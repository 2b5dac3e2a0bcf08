"""NC1–NC4 of a PyTorch network: collect the inputs of its last layer, measure, keep."""

import numpy as np
import torch

import ufm


@torch.no_grad()
def collect(network, head, loader):
    """(W, H, b, labels) as NumPy arrays: H (d, N) holds what goes into `head`."""
    features, labels = [], []
    hook = head.register_forward_pre_hook(lambda _, inputs: features.append(inputs[0].cpu()))
    network.eval()
    for x, y in loader:
        network(x)
        labels.append(y)
    hook.remove()
    b = np.zeros(head.out_features) if head.bias is None else head.bias.cpu().numpy()
    H = torch.cat(features).flatten(1).T.numpy()
    return head.weight.cpu().numpy(), H, b, torch.cat(labels).numpy()


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
    before = ufm.metrics.collapse(*collect(network, head, loader))
    network.train()
    for _ in range(2000):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(network(x), labels).backward()
        optimizer.step()
    W, H, b, y = collect(network, head, loader)
    np.savez("features.npz", W=W, H=H, b=b, labels=y)  # for `ufm measure features.npz`
    return before, ufm.metrics.collapse(W, H, b, y)


if __name__ == "__main__":
    for when, collapse in zip(("before", "after"), example(), strict=True):
        print(f"{when}: NC1 {collapse.nc1:.3g}, NC2 {collapse.nc2:.3g}, NC3 {collapse.nc3:.3g}")
