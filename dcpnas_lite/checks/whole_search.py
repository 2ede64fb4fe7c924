"""Chapter 1: the cell that α names, how sure an accuracy is, a rule for the step of α. It owns no equation, and its exercises
go by names."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .table import Chapter

chapter = Chapter("01-whole-search")


def _none_ahead(arguments: dict) -> dict:
    """On the first edge `none` is the strongest; on the last the largest size is a negative entry."""
    alpha = arguments["alpha"]
    alpha[0, 0], alpha[-1, 1] = alpha.max() + 1, -alpha.abs().max() - 1
    return arguments


def _one(columns: Tensor, count: int) -> Tensor:
    return F.one_hot(columns, count).double()


def _choice(alpha: Tensor) -> Tensor:
    return _one(1 + alpha[:, 1:].argmax(1), alpha.shape[1])


chapter.exercise(
    "choice",
    "alpha (E, M) -> (E, M)",
    "on every edge 1 for the operation with the largest α, `none`, column 0, excepted, and 0 for all others",
    _choice,
    {
        "`none` can be chosen": lambda a: _one(a.argmax(1), a.shape[1]),
        "counted without the column of `none`": lambda a: _one(a[:, 1:].argmax(1), a.shape[1]),
        "one operation for the whole cell": lambda a: _one(a[:, 1:].argmax() % (a.shape[1] - 1) + 1, a.shape[1]).expand_as(a),
        "the best edge of an operation, not the best operation of an edge": lambda a: _one(a.argmax(0), a.shape[0]).T,
        "the weakest operation": lambda a: _choice(-a),
        "the largest size, not the largest value": lambda a: _choice(a.abs()),
        "the shares, not the choice": lambda a: a.softmax(1),
        "true and false": lambda a: _choice(a) == 1,
    },
    _none_ahead,
)


def _answers(arguments: dict) -> dict:
    """1 for a right answer, 0 for a wrong one; at least one of each."""
    right = (arguments["right"] > -0.5).double()
    right[0], right[-1] = 1, 0
    return {"right": right}


def _margin(right: Tensor) -> Tensor:
    share = right.mean()
    return 1.96 * (share * (1 - share) / len(right)).sqrt()


chapter.exercise(
    "margin",
    "right (N) -> ()",
    "half the width of the 95 % interval of an accuracy, normal approximation",
    _margin,
    {
        "1.96 is missing": lambda right: _margin(right) / 1.96,
        "the whole width": lambda right: 2 * _margin(right),
        "the variance, no root taken": lambda right: 1.96 * right.mean() * (1 - right.mean()) / len(right),
        "the spread of one answer, not of their mean": lambda right: _margin(right) * len(right) ** 0.5,
        "divided by the number, not by its root": lambda right: _margin(right) / len(right) ** 0.5,
        "a deviation with N - 1 in place of N": lambda right: 1.96 * right.std() / len(right) ** 0.5,
        "the share of wrong answers is missing": lambda right: 1.96 * (right.mean() / len(right)).sqrt(),
    },
    _answers,
)


chapter.exercise(
    "half a step",
    "alpha (E, M), alpha_next (E, M) -> (E, M)",
    "the middle between α before the step and α after it",
    lambda a, b: (a + b) / 2,
    {
        "the whole step": lambda a, b: 1.0 * b,
        "no step": lambda a, b: 1.0 * a,
        "half of the new α": lambda a, b: b / 2,
        "half of the step, without the start": lambda a, b: (b - a) / 2,
        "the step added once more": lambda a, b: b + (b - a) / 2,
        "backwards": lambda a, b: a - (b - a) / 2,
        "the mean over everything": lambda a, b: torch.stack([a, b]).mean().expand_as(a),
    },
)
