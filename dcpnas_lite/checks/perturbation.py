"""Chapter 13: what an operation is worth to its supernet. It owns no equation, and its exercises go by names."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .table import Chapter

chapter = Chapter("13-reading-a-cell")


def _loss(shares: Tensor, outputs: Tensor, target: Tensor) -> Tensor:
    return (shares @ outputs - target).square().mean()


def _worth(row: Tensor, outputs: Tensor, target: Tensor) -> Tensor:
    drops = []
    for m in range(len(row)):
        without = row.clone()
        without[m] = -math.inf
        drops.append(_loss(without.softmax(0), outputs, target) - _loss(row.softmax(0), outputs, target))
    return torch.stack(drops)


def _not_mixed_again(row: Tensor, outputs: Tensor, target: Tensor) -> Tensor:
    shares = row.softmax(0)
    without = shares - torch.diag(shares)
    return torch.stack([_loss(w, outputs, target) for w in without]) - _loss(shares, outputs, target)


def _logit_of_0(row: Tensor, outputs: Tensor, target: Tensor) -> Tensor:
    changed = row - torch.diag(row)
    return torch.stack([_loss(r.softmax(0), outputs, target) for r in changed]) - _loss(row.softmax(0), outputs, target)


def _first_order(row: Tensor, outputs: Tensor, target: Tensor) -> Tensor:
    row = row.clone().requires_grad_()
    shares = row.softmax(0)
    (slope,) = torch.autograd.grad(_loss(shares, outputs, target), shares)
    return -slope * shares.detach()


chapter.exercise(
    "perturbation",
    "row (M), outputs (M, N), target (N) -> (M)",
    "how much the loss of a mixed edge rises without each operation",
    _worth,
    {
        "the shares left are not mixed again": _not_mixed_again,
        "a logit of 0 in place of minus infinity": _logit_of_0,
        "the loss itself, not its rise": lambda row, outputs, target: (
            _worth(row, outputs, target) + _loss(row.softmax(0), outputs, target)
        ),
        "the loss of each operation alone": lambda row, outputs, target: torch.stack([_loss(o, outputs, target) for o in
            torch.eye(len(row), dtype=row.dtype)]) - _loss(row.softmax(0), outputs, target),
        "a derivative, not a finite change": _first_order,
        "the shares of α": lambda row, outputs, target: row.softmax(0),
    },
)  # fmt: skip


def _with_a_trap(arguments: dict) -> dict:
    """Losses of all cells of two edges: a path leads down from the start, and not to the smallest of all."""
    loss = 3 + arguments["loss"].sigmoid()
    if len(loss) > 2:
        loss[-1, -1], loss[2, 1], loss[2, 2] = 1.0, 1.7, 1.6
    loss[:2, :2] = torch.tensor([[1.9, 1.8], [1.85, 2.0]])
    return {"loss": loss}


def _local_search(loss: Tensor) -> Tensor:
    i = j = 0
    while True:
        steps = [(loss[k, j].item(), k, j) for k in range(len(loss))] + [(loss[i, k].item(), i, k) for k in range(len(loss))]
        best, *step = min(steps)
        if best >= loss[i, j].item():
            return loss[i, j]
        i, j = step


chapter.exercise(
    "local search",
    "loss (M, M) -> ()",
    "the loss at which a local search from the cell [0, 0], one edge at a time, comes to rest",
    _local_search,
    {
        "one step alone": lambda loss: torch.minimum(loss[0].min(), loss[:, 0].min()),
        "the smallest of all": lambda loss: loss.min(),
        "the start": lambda loss: loss[0, 0],
        "the first edge alone": lambda loss: loss[:, 0].min(),
        "steps to a larger loss": lambda loss: loss[0].max(),
        "both edges at once, each as if the other stayed": lambda loss: loss[loss[:, 0].argmin(), loss[0].argmin()],
    },
    _with_a_trap,
)
