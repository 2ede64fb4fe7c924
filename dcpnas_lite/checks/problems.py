"""The random problems that the checks run on, and the measure by which they judge."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor

from ..derivation import responses, toys

SIZES = ((3, 4), (5, 2), (4, 4), (2, 6))  # (E, M): E smaller than M, larger, and equal


class Case:
    """One random problem: E edges, M operations, and float64 tensors of either sign, each call drawing a new one."""

    def __init__(self, number: int):
        (self.E, self.M), self.number = SIZES[number], number
        self.generator = torch.Generator().manual_seed(number)

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator, dtype=torch.float64)

    def distribution(self, *shape: int) -> Tensor:
        return self.normal(*shape).softmax(-1)

    def labels(self, count: int, classes: int) -> Tensor:
        return torch.randint(classes, (count,), generator=self.generator)

    def toy(self, kind: type[toys.Toy] = toys.LinearMixture, E: int | None = None, **options) -> toys.Toy:
        """A toy whose α and response have either sign."""
        toy = kind.random(E or self.E, self.M, self.number, **options)
        signs = 2.0 * torch.randint(2, (2, *toy.alpha.shape), generator=self.generator) - 1
        return dataclasses.replace(toy, alpha=signs[0] * toy.alpha, slope=signs[1] * toy.slope)

    def mixture(self, **options) -> tuple[toys.Toy, Tensor, Tensor, Tensor]:
        """A mixture that answers explicitly: the toy, its ∂w/∂α, L̃, and the coupling C by autograd through w(α)."""
        toy = self.toy(**options)
        w, jacobian = responses.Explicit(toy.phi)(toy.alpha)
        return toy, jacobian, toy.delta(toy.alpha, w).T, coupling_of(toy, toy.phi)


def coupling_of(toy: toys.Toy, weights: Callable[[Tensor], Tensor]) -> Tensor:
    """dL/dα through w = weights(α) less ∂L/∂α at fixed w, both by autograd, (E, M)."""
    alpha = toy.alpha.clone().requires_grad_()
    w = weights(alpha)
    (total,) = torch.autograd.grad(toy.loss(alpha, w), alpha, retain_graph=True)
    (direct,) = torch.autograd.grad(toy.loss(alpha, w.detach()), alpha)
    return total - direct


def deviation(got: Tensor, want: Tensor) -> float:
    """Relative error; inf where shapes differ or a number is not finite."""
    got, want = torch.as_tensor(got), torch.as_tensor(want)
    if got.shape != want.shape or not (torch.isfinite(got).all() and torch.isfinite(want).all()):
        return float("inf")
    return ((got - want).norm() / want.norm().clamp(min=1e-300)).item()


def along(function: Callable[[Tensor], Tensor], x: Tensor, direction: Tensor, h: float = 1e-3) -> Tensor:
    """Derivative of a function along a direction by central differences, extrapolated to h = 0 (Richardson)."""
    near, far = ((function(x + s * direction) - function(x - s * direction)) / (2 * s) for s in (h, 2 * h))
    return (4 * near - far) / 3


def distributions(arguments: dict) -> dict:
    return {name: value.softmax(1) if name in ("target", "p") else value for name, value in arguments.items()}


def symmetric(arguments: dict) -> dict:
    root = arguments["hessian"]
    return arguments | {"hessian": root @ root.T + torch.eye(len(root), dtype=root.dtype)}
