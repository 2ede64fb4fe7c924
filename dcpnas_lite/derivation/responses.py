"""The derivative ∂w/∂α that the source calls undefined and unsolvable (4.43), for three ways in which w can answer α.

``response(alpha, w)`` returns ``Response(w, jacobian)`` in float64: the weights after the response and
jacobian[k, e, m] = ∂w_k/∂α_{e,m}. ``response.weights(alpha, w)`` is the map α ↦ w alone, differentiable by autograd.
A loss is a scalar function of (alpha, w). Weights may have any shape; the Jacobian has that shape followed by (E, M).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.autograd.functional import jacobian

if TYPE_CHECKING:
    from jaxtyping import Float

    Loss = Callable[[Float[Tensor, "E M"], Float[Tensor, " M"]], Float[Tensor, ""]]


class Response(NamedTuple):
    """Weights w (M,) after the response, and its Jacobian (M, E, M)."""

    w: Float[Tensor, " M"]
    jacobian: Float[Tensor, "M E M"]


@dataclass(frozen=True)
class Explicit:
    """w = φ(α), whatever w was. With w_m = φ_m(α_{:,m}) the independence assumption of 4.46 holds by construction."""

    phi: Callable[[Float[Tensor, "E M"]], Float[Tensor, " M"]]

    def weights(self, alpha: Float[Tensor, "E M"], w: Float[Tensor, " M"] | None = None) -> Float[Tensor, " M"]:
        return self.phi(alpha)

    def __call__(self, alpha: Float[Tensor, "E M"], w: Float[Tensor, " M"] | None = None) -> Response:
        alpha = alpha.detach().double()
        return Response(self.phi(alpha).detach(), jacobian(self.phi, alpha))


@dataclass(frozen=True)
class Unrolled:
    """One gradient step w' = w − ξ ∂L/∂w, hence ∂w'/∂α = −ξ ∂²L/∂w∂α: DARTS' second-order term."""

    loss: Loss
    xi: float

    def weights(self, alpha: Float[Tensor, "E M"], w: Float[Tensor, " M"]) -> Float[Tensor, " M"]:
        return w - self.xi * _slope(self.loss, alpha, w)

    def __call__(self, alpha: Float[Tensor, "E M"], w: Float[Tensor, " M"]) -> Response:
        alpha, w = alpha.detach().double(), w.detach().double()
        mixed = _mixed(self.loss, alpha, w)
        return Response(self.weights(alpha, w).detach(), -self.xi * mixed)


@dataclass(frozen=True)
class Implicit:
    """w*(α) = argmin_w L(w, α), hence ∂w*/∂α = −(∂²L/∂w²)^{-1} ∂²L/∂w∂α (implicit function theorem).

    Newton's method with step halving, in float64, starts from the given w. RuntimeError if 50 steps do not reach a
    stationary point, or if it is no strict minimum; a loss that is strictly convex in w excludes the latter.
    """

    loss: Loss

    def weights(self, alpha: Float[Tensor, "E M"], w: Float[Tensor, " M"]) -> Float[Tensor, " M"]:
        # one more Newton step, which changes nothing at w*, lets autograd find ∂w*/∂α
        w = self._solve(alpha.detach().double(), w.detach().double())
        slope = _slope(self.loss, alpha.double(), w)
        return w - torch.linalg.solve(self._hessian(alpha.detach().double(), w), slope.flatten()).view_as(w)

    def __call__(self, alpha: Float[Tensor, "E M"], w: Float[Tensor, " M"]) -> Response:
        alpha = alpha.detach().double()
        w = self._solve(alpha, w.detach().double())
        mixed = _mixed(self.loss, alpha, w)
        solution = torch.linalg.solve(self._hessian(alpha, w), mixed.reshape(w.numel(), -1))
        return Response(w, -solution.view_as(mixed))

    def _hessian(self, alpha: Tensor, w: Tensor) -> Tensor:
        """∂²L/∂w² with w flattened."""
        return jacobian(lambda w: _slope(self.loss, alpha, w), w).reshape(w.numel(), w.numel())

    def _solve(self, alpha: Tensor, w: Tensor) -> Tensor:
        slope = _slope(self.loss, alpha, w).detach()
        tolerance = 1e-10 * (1 + slope.norm())
        for _ in range(50):
            if slope.norm() <= tolerance:
                break
            newton = torch.linalg.solve(self._hessian(alpha, w), slope.flatten()).view_as(w)
            while self.loss(alpha, w - newton) > self.loss(alpha, w) and newton.norm() > 1e-6 * w.norm():
                newton = newton / 2
            w = w - newton
            slope = _slope(self.loss, alpha, w).detach()
        else:
            raise RuntimeError(f"implicit response: ‖∂L/∂w‖ = {slope.norm():.3g} after 50 Newton steps, not stationary")
        if torch.linalg.eigvalsh(self._hessian(alpha, w))[0] <= 0:
            raise RuntimeError("implicit response: the stationary point found is no strict minimum of L in w")
        return w


def _slope(loss: Loss, alpha: Float[Tensor, "E M"], w: Float[Tensor, " M"]) -> Float[Tensor, " M"]:
    """∂L/∂w, itself differentiable in alpha and w."""
    w = w if w.requires_grad else w.detach().requires_grad_()
    return torch.autograd.grad(loss(alpha, w), w, create_graph=True)[0]


def _mixed(loss: Loss, alpha: Float[Tensor, "E M"], w: Float[Tensor, " M"]) -> Float[Tensor, "M E M"]:
    """∂²L/∂w∂α."""
    return jacobian(lambda alpha: _slope(loss, alpha, w), alpha)


def independence_defect(jacobian: Float[Tensor, "... M E M"]) -> float:
    """Share of ‖∂w/∂α‖² outside the pattern of 4.46, where w_k answers to column k of α alone.

    Weights of one per operation, (M, E, M), or of one per edge and operation, (E, M, E, M). 0: the assumption holds.
    ValueError for another shape; nan where the Jacobian is 0.
    """
    given = tuple(jacobian.shape)
    if len(given) not in (3, 4) or given[-3] != given[-1] or (len(given) == 4 and given[0] != given[2]):
        raise ValueError(f"jacobian: expected shape (M, E, M) or (E, M, E, M), got {given}")
    outside = 1 - torch.eye(given[-1], dtype=jacobian.dtype, device=jacobian.device).unsqueeze(1)
    return ((jacobian * outside).square().sum() / jacobian.square().sum()).item()
