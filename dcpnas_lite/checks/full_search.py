"""Chapter 11: what a search is read by: what is left of a phase, the edges that a node keeps, the price of luck."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .table import Chapter

chapter = Chapter("11-full-search")


def _centred(*moves: Tensor) -> list[Tensor]:
    return [move - move.mean(1, keepdim=True) for move in moves]


def _left(p: Tensor, c: Tensor) -> Tensor:
    return ((p + c) * p).sum(1) / p.square().sum(1)


def _cosine(p: Tensor, c: Tensor) -> Tensor:
    return torch.cosine_similarity(p, c, dim=1)


chapter.exercise(
    "what is left",
    "parent (E, M), child (E, M) -> (E)",
    "the share of the Parent's displacement that is left after the Child's, along it, on every edge; the mean of each row is "
    "taken off first",
    lambda p, c: _left(*_centred(p, c)),
    {
        "divided by both lengths, a cosine": lambda p, c: 1 + _cosine(*_centred(p, c)),
        "row means not taken off": _left,
        "the Child's part alone": lambda p, c: _left(*_centred(p, c)) - 1,
        "length in place of the part along it": lambda p, c: sum(_centred(p, c)).norm(dim=1) / _centred(p)[0].norm(dim=1),
        "along the Child's displacement": lambda p, c: _left(*_centred(c, p)),
        "divided by the length, not its square": lambda p, c: _left(*_centred(p, c)) * _centred(p)[0].norm(dim=1),
        "all edges together": lambda p, c: _left(*(x.reshape(1, -1) for x in _centred(p, c))).expand(len(p)),
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
