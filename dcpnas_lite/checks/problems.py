"""The random problems that several chapters share, and the measure by which their checks judge."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..derivation import responses, toys


def deviation(got: Tensor, want: Tensor) -> float:
    """Relative error; inf where shapes differ or a number is not finite."""
    got, want = torch.as_tensor(got), torch.as_tensor(want)
    if got.shape != want.shape or not (torch.isfinite(got).all() and torch.isfinite(want).all()):
        return float("inf")
    return ((got - want).norm() / want.norm().clamp(min=1e-300)).item()


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def mixture(seed: int = 0, **options) -> tuple[toys.LinearMixture, Tensor, Tensor, Tensor, Tensor]:
    """A mixture toy answered explicitly: the toy, w, ∂w/∂α, L̃ and ∂L/∂w, with E = 3 and M = 4."""
    toy = toys.LinearMixture.random(3, 4, seed, **options)
    w, jacobian = responses.Explicit(toy.phi)(toy.alpha)
    return toy, w, jacobian, toy.delta(toy.alpha, w).T, toy.dL_dw(toy.alpha, w)


def along(function: Callable[[Tensor], Tensor], x: Tensor, direction: Tensor, step: float = 1e-3) -> Tensor:
    """Derivative of a function along a direction by central differences, extrapolated to step 0 (Richardson)."""
    near, far = ((function(x + h * direction) - function(x - h * direction)) / (2 * h) for h in (step, 2 * step))
    return (4 * near - far) / 3


def distributions(arguments: dict) -> dict:
    return {name: value.softmax(1) if name in ("target", "p") else value for name, value in arguments.items()}


def symmetric(arguments: dict) -> dict:
    root = arguments["hessian"]
    return arguments | {"hessian": root @ root.T + torch.eye(len(root), dtype=root.dtype)}
