"""Chapter 11: what a search is read by: two rankings compared, the edges that a node keeps, the price of luck."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .table import Chapter

chapter = Chapter("11-full-search")


def _ranks(values: Tensor, dim: int = 1) -> Tensor:
    return values.argsort(dim).argsort(dim).double()


def _correlation(a: Tensor, b: Tensor, dim: int = 1) -> Tensor:
    a, b = (x - x.mean(dim, keepdim=True) for x in (a, b))
    return (a * b).sum(dim) / (a.norm(dim=dim) * b.norm(dim=dim))


def _kendall(a: Tensor, b: Tensor) -> Tensor:
    signs = [(x[:, :, None] - x[:, None, :]).sign() for x in (a, b)]
    return (signs[0] * signs[1]).sum((1, 2)) / (a.shape[1] * (a.shape[1] - 1))


chapter.exercise(
    "rank agreement",
    "mine (E, M), yours (E, M) -> (E)",
    "Spearman's correlation on every edge: that of the ranks of the operations",
    lambda a, b: _correlation(_ranks(a), _ranks(b)),
    {
        "order taken for rank": lambda a, b: _correlation(a.argsort(1).double(), b.argsort(1).double()),
        "the values, not their ranks": lambda a, b: _correlation(a, b),
        "ranks over the edges": lambda a, b: _correlation(_ranks(a, 0), _ranks(b, 0), 0),
        "all edges together": lambda a, b: _correlation(_ranks(a).flatten(), _ranks(b).flatten(), 0).expand(len(a)),
        "mean rank not taken off": lambda a, b: torch.cosine_similarity(_ranks(a), _ranks(b), dim=1),
        "Kendall's τ": _kendall,
        "M³ in place of M(M² − 1)": lambda a, b: 1 - 6 * (_ranks(a) - _ranks(b)).square().sum(1) / a.shape[1] ** 3,
    },
)


def _kept(strength: Tensor, count: int = 2) -> Tensor:
    """1.0 for the strongest edges of a node, 0.0 for the others."""
    return torch.zeros_like(strength).scatter(0, strength.topk(count).indices, 1.0)


chapter.exercise(
    "kept edges",
    "alpha (E, M) -> (E)",
    "1 for the two edges that a node keeps, 0 for the others: their best operation other than `none`, column 0, has the "
    "largest share",
    lambda a: _kept(a.softmax(1)[:, 1:].amax(1)),
    {
        "`none` counted as an operation": lambda a: _kept(a.softmax(1).amax(1)),
        "α in place of the share": lambda a: _kept(a[:, 1:].amax(1)),
        "`none` left out before the softmax": lambda a: _kept(a[:, 1:].softmax(1).amax(1)),
        "all operations together": lambda a: _kept(a.softmax(1)[:, 1:].sum(1)),
        "one edge alone": lambda a: _kept(a.softmax(1)[:, 1:].amax(1), 1),
        "the weakest edges": lambda a: _kept(-a.softmax(1)[:, 1:].amax(1)),
    },
)


def _draws(place: Tensor, confidence: float) -> Tensor:
    return math.log(1 - confidence) / place.log()


chapter.exercise(
    "draws",
    "place (N), confidence -> (N)",
    "how many cells, drawn at random, have one at least as good among them with that probability; place: the share of all "
    "cells that are worse",
    lambda p, c: _draws(p, c).ceil(),
    {
        "not rounded up": _draws,
        "rounded down": lambda p, c: _draws(p, c).floor(),
        "one draw too many": lambda p, c: _draws(p, c).ceil() + 1,
        "the confidence in place of the risk": lambda p, c: _draws(p, 1 - c).ceil(),
        "the share of the better cells": lambda p, c: _draws(1 - p, c).ceil(),
        "chances added": lambda p, c: (c / (1 - p)).ceil(),
        "for all places at once": lambda p, c: _draws(p, c).amax().ceil().expand(len(p)),
    },
    lambda arguments: arguments | {"place": (1.5 + arguments["place"]).sigmoid()},
)
