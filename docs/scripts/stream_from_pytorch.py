"""NC1–NC4 of a PyTorch network whose features do not fit in memory: batch by batch, twice."""

import torch

import ufm


@torch.no_grad()
def batches(network, head, loader):
    """What goes into `head`, (m, d), and the labels (m,): a batch at a time, where they are."""
    caught = []
    hook = head.register_forward_pre_hook(lambda _, inputs: caught.append(inputs[0].flatten(1)))
    network.eval()
    for x, y in loader:
        network(x.to(head.weight.device))
        yield caught.pop(), y
    hook.remove()


def measure(network, head, loader, **options):
    """An `ufm.metrics.Accumulator` that has seen the data twice, or once about given `means`.

    The loader must give the same samples each time, in any order: no random augmentation.
    """
    seen = ufm.metrics.Accumulator(head.weight, head.bias, passes=2, **options)
    for step in (seen.add,) if "means" in options else (seen.add, seen.again):
        for features, labels in batches(network, head, loader):
            step(features, labels)
    return seen


def example():
    """Training and test features of a small network on three noisy blobs."""
    torch.manual_seed(0)
    labels = torch.arange(3).repeat_interleave(80)
    x = 2 * torch.eye(20)[labels] + torch.randn(240, 20)
    train, test = [(x[i::8], labels[i::8]) for i in range(6)], [(x[6::8], labels[6::8])]
    head = torch.nn.Linear(64, 3)
    network = torch.nn.Sequential(torch.nn.Linear(20, 64), torch.nn.ReLU(), head)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3)
    for _ in range(200):
        for inputs, targets in train:
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(network(inputs), targets).backward()
            optimizer.step()
    seen = measure(network, head, train)
    return seen, measure(network, head, test, means=seen.class_means)


if __name__ == "__main__":
    for name, seen in zip(("training", "test"), example(), strict=True):
        nc, detail = seen.collapse(), seen.detail()
        print(f"{name}: NC1 {nc.nc1:.3g}, NC4 {nc.nc4:.3g}, accuracy {detail.accuracy:.3g}, "
              f"nearest centre {detail.nearest_centre:.3g}")  # fmt: skip
