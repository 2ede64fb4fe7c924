"""Chapter 12: what a comparison of searches is judged by. It owns no equation, and its exercises go by names."""

from __future__ import annotations

import torch
from torch import Tensor

from .table import Chapter

chapter = Chapter("12-does-it-work")


def _of_one_seed(arguments: dict) -> dict:
    """Two methods whose searches of the same seed have something in common."""
    return {"yours": arguments["yours"] + 2 * arguments["theirs"], "theirs": 2 * arguments["theirs"]}


def _error(values: Tensor) -> Tensor:
    """Standard error of the mean."""
    return values.std() / len(values) ** 0.5


chapter.exercise(
    "paired difference",
    "yours (N), theirs (N) -> ()",
    "mean difference on the same seeds, in units of its standard error",
    lambda yours, theirs: (yours - theirs).mean() / _error(yours - theirs),
    {
        "not paired: the errors of the two means": lambda yours, theirs: (
            (yours.mean() - theirs.mean()) / torch.hypot(_error(yours), _error(theirs))
        ),
        "the deviation of one pair, not the error of the mean": lambda yours, theirs: (
            (yours - theirs).mean() / (yours - theirs).std()
        ),
        "not divided by the error": lambda yours, theirs: (yours - theirs).mean(),
        "divided by the number, not by its root": lambda yours, theirs: (
            (yours - theirs).mean() / (yours - theirs).std() * len(yours)
        ),
        "a deviation with N in place of N - 1": lambda yours, theirs: (
            (yours - theirs).mean() / (yours - theirs).std(correction=0) * len(yours) ** 0.5
        ),
        "the median in place of the mean": lambda yours, theirs: (yours - theirs).median() / _error(yours - theirs),
    },
    _of_one_seed,
)


def _with_ties(arguments: dict) -> dict:
    """Two rankings; the first entry of each has an equal one."""
    for values in arguments.values():
        values[-1] = values[0]
    return {"real": arguments["real"], "one_bit": arguments["one_bit"].roll(1)}


def _ranks(values: Tensor) -> Tensor:
    """From 1; equal values share the mean of their ranks."""
    below, equal = values[None] < values[:, None], values[None] == values[:, None]
    return (below.sum(1) + (equal.sum(1) + 1) / 2).double()


def _in_order(values: Tensor) -> Tensor:
    return values.argsort(stable=True).argsort().double()


def _correlation(a: Tensor, b: Tensor) -> Tensor:
    return torch.corrcoef(torch.stack([a, b]))[0, 1]


def _footrule(real: Tensor, one_bit: Tensor) -> Tensor:
    n = len(real)
    return 1 - 6 * (_ranks(real) - _ranks(one_bit)).square().sum() / (n * (n * n - 1))


chapter.exercise(
    "rank correlation",
    "real (entries), one_bit (entries) -> ()",
    "rank correlation of Spearman, equal values sharing the mean of their ranks",
    lambda real, one_bit: _correlation(_ranks(real), _ranks(one_bit)),
    {
        "ties ranked in their order": lambda real, one_bit: _correlation(_in_order(real), _in_order(one_bit)),
        "values in place of ranks": lambda real, one_bit: _correlation(real, one_bit),
        "one sorting is no ranking": lambda real, one_bit: _correlation(
            real.argsort(stable=True).double(), one_bit.argsort(stable=True).double()
        ),
        "equal values share the lowest of their ranks": lambda real, one_bit: _correlation(
            (real[None] < real[:, None]).sum(1).double(), (one_bit[None] < one_bit[:, None]).sum(1).double()
        ),
        "the short formula, which ties break": _footrule,
        "a mean of products, nothing subtracted": lambda real, one_bit: (_ranks(real) * _ranks(one_bit)).mean(),
    },
    _with_ties,
)


def _draws(arguments: dict) -> dict:
    """n between 3 and 9."""
    return {"accuracy": arguments["accuracy"].sigmoid(), "n": 2 + int(8 * arguments["n"])}


def _best_of(accuracy: Tensor, n: int) -> Tensor:
    share = torch.arange(len(accuracy) + 1, dtype=accuracy.dtype) / len(accuracy)
    return (accuracy.sort().values * (share**n).diff()).sum()


def _without_replacement(accuracy: Tensor, n: int) -> Tensor:
    n = min(n, len(accuracy))
    return torch.combinations(accuracy, n).max(1).values.mean() if n > 1 else accuracy.mean()


chapter.exercise(
    "best of n",
    "accuracy (entries), n -> ()",
    "expected best of n cells drawn at random, with replacement",
    _best_of,
    {
        "not sorted": lambda accuracy, n: (
            accuracy * (torch.arange(len(accuracy) + 1, dtype=torch.float64) / len(accuracy)).pow(n).diff()
        ).sum(),
        "one cell, not n": lambda accuracy, n: accuracy.mean(),
        "the best of all": lambda accuracy, n: accuracy.max(),
        "drawn without replacement": _without_replacement,
        "one more cell": lambda accuracy, n: _best_of(accuracy, n + 1),
        "the worst of n": lambda accuracy, n: -_best_of(-accuracy, n),
        "the quantile n / (n + 1)": lambda accuracy, n: accuracy.quantile(n / (n + 1)),
    },
    _draws,
)
