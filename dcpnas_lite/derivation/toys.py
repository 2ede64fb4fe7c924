"""Two small problems on which every line of the derivation can be checked, one for each form that 4.44 can take.

Both take a loss L(α, w) = ℓ(products of α and w) with the same smooth convex ℓ(z) = ½ zᵀQz + bᵀz + log Σ exp(Pz):

- reading A, ``LinearMixture``: z = α ⊙ w, as in the node formula, where α scales each operation. L̃ is (M, E). With the
  weights as a matrix W = diag(w) the same products are α W, and ``toy.ell(alpha @ W)`` is the matrix reading of 4.44;
- reading B, ``Bilinear``: z = α w, with one number per edge. L̃ is (1, E).

In the source w^(i,j) = [[w_m]] is per edge and w_m a kernel. Here w_m is one number, shared by the edges: the smallest case in
which w ∈ R^{M×1} of 4.42 can be taken at its word. ``per_edge=True`` gives every edge weights of its own.

Each problem brings a point ``alpha`` (E, M), ``w`` (M,) and an explicit response ``phi``; every method takes any point.
α and ∂φ/∂α are drawn positive, as mixing weights are; ``dataclasses.replace(toy, alpha=…, slope=…)`` changes that.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from .trace import coupling, loss_factor

if TYPE_CHECKING:
    from typing import Self

    from jaxtyping import Float

    from .responses import Response


@dataclass(frozen=True)
class Toy(ABC):
    """What both readings share: ℓ, the point, the response, and what follows from them. Z is the number of products."""

    quadratic: Float[Tensor, "Z Z"]
    linear: Float[Tensor, " Z"]
    directions: Float[Tensor, "3 Z"]
    slope: Float[Tensor, "E M"]
    alpha: Float[Tensor, "E M"]
    w: Float[Tensor, " M"]
    random: ClassVar[Callable[..., Toy]]  # (E, M, seed, …)

    @abstractmethod
    def products(self, alpha: Float[Tensor, "E M"], w: Float[Tensor, " M"]) -> Float[Tensor, "*shape"]:
        """z, what ℓ is a function of."""

    @abstractmethod
    def factor(self, alpha: Float[Tensor, "E M"], w: Float[Tensor, " M"]) -> Float[Tensor, "*shape"]:
        """L̃ of 4.44."""

    @abstractmethod
    def dL_dw(self, alpha: Float[Tensor, "E M"], w: Float[Tensor, " M"]) -> Float[Tensor, " M"]:
        """∂L/∂w at fixed α."""

    @abstractmethod
    def dL_dalpha(self, alpha: Float[Tensor, "E M"], w: Float[Tensor, " M"]) -> Float[Tensor, "E M"]:
        """∂L/∂α at fixed w."""

    def mixing(self, alpha: Float[Tensor, "E M"]) -> Float[Tensor, "E M"]:
        """What multiplies the weights: α itself, or its softmax in that variant of the mixture."""
        return alpha

    def ell(self, z: Float[Tensor, "*shape"]) -> Float[Tensor, ""]:
        """ℓ of the products, in whatever shape they come."""
        z = z.flatten()
        return 0.5 * z @ self.quadratic @ z + self.linear @ z + torch.logsumexp(self.directions @ z, 0)

    def delta(self, alpha: Float[Tensor, "E M"], w: Float[Tensor, " M"]) -> Float[Tensor, "*shape"]:
        """δ = ∂ℓ/∂z in closed form, in the shape of the products: (E, M) for the mixture, (E,) for the bilinear."""
        products = self.products(alpha, w)
        z = products.flatten()
        slope = self.quadratic @ z + self.linear + self.directions.T @ torch.softmax(self.directions @ z, 0)
        return slope.view_as(products)

    def loss(self, alpha: Float[Tensor, "E M"], w: Float[Tensor, " M"]) -> Float[Tensor, ""]:
        """L(α, w) = ℓ(products). Convex in w."""
        return self.ell(self.products(alpha, w))

    def regularized(self, alpha: Float[Tensor, "E M"], w: Float[Tensor, " M"]) -> Float[Tensor, ""]:
        """L(α, w) + reg(w) of 4.42 with reg(w) = ½‖w‖²: strongly convex in w, what the weights are trained on."""
        return self.loss(alpha, w) + 0.5 * w.square().sum()

    def phi(self, alpha: Float[Tensor, "E M"]) -> Float[Tensor, " M"]:
        """The explicit response w_m + Σ_e slope[e, m] tanh(α_{e,m}), of softmax(α) in that variant; no sum per edge."""
        answer = self.slope * torch.tanh(self.mixing(alpha))
        return self.w + (answer.sum(0) if self.w.ndim == 1 else answer)

    def total(
        self, alpha: Float[Tensor, "E M"], w: Float[Tensor, " M"], respond: Callable[..., Response]
    ) -> Float[Tensor, "E M"]:
        """dL/dα of L(α, w(α)) through any response: the direct part ∂L/∂α plus the coupling of 4.43, both at w(α)."""
        w, jacobian = respond(alpha, w)
        edges, operations = alpha.shape
        direct, dL_dw = self.dL_dalpha(alpha, w), self.dL_dw(alpha, w)
        return direct + coupling(dL_dw.flatten(), jacobian.reshape(-1, edges, operations))


@dataclass(frozen=True)
class LinearMixture(Toy):
    """Reading A: L = ℓ(α ⊙ w), or ℓ(softmax(α) ⊙ w). With w of shape (E, M), every edge has weights of its own."""

    softmax: bool = False

    @classmethod
    def random(cls, E: int, M: int, seed: int, softmax: bool = False, per_edge: bool = False) -> Self:
        return cls(**_draw(E, M, E * M, (E, M) if per_edge else (M,), seed), softmax=softmax)

    def mixing(self, alpha: Float[Tensor, "E M"]) -> Float[Tensor, "E M"]:
        return torch.softmax(alpha, 1) if self.softmax else alpha.clone()

    def products(self, alpha: Float[Tensor, "E M"], w: Float[Tensor, " M"]) -> Float[Tensor, "E M"]:
        return self.mixing(alpha) * w

    def factor(self, alpha: Float[Tensor, "E M"], w: Float[Tensor, " M"]) -> Float[Tensor, "M E"]:
        """L̃ = δ^T: column e is g̃_e, and ∂L/∂w the diagonal of L̃ α, with softmax(α) for α in that variant."""
        return loss_factor(self.delta(alpha, w))

    def dL_dw(self, alpha: Float[Tensor, "E M"], w: Float[Tensor, " M"]) -> Float[Tensor, " M"]:
        per_product = self.mixing(alpha) * self.delta(alpha, w)
        return per_product.sum(0) if w.ndim == 1 else per_product

    def dL_dalpha(self, alpha: Float[Tensor, "E M"], w: Float[Tensor, " M"]) -> Float[Tensor, "E M"]:
        """∂L/∂α at fixed w."""
        direct = self.delta(alpha, w) * w
        if not self.softmax:
            return direct
        p = self.mixing(alpha)
        return p * (direct - (p * direct).sum(1, keepdim=True))


@dataclass(frozen=True)
class Bilinear(Toy):
    """Reading B: L = ℓ(α w), ℓ a function of one number per edge."""

    @classmethod
    def random(cls, E: int, M: int, seed: int) -> Self:
        return cls(**_draw(E, M, E, (M,), seed))

    def products(self, alpha: Float[Tensor, "E M"], w: Float[Tensor, " M"]) -> Float[Tensor, " E"]:
        return alpha @ w

    def factor(self, alpha: Float[Tensor, "E M"], w: Float[Tensor, " M"]) -> Float[Tensor, "1 E"]:
        """L̃ = g̃^T, one number per edge, and (∂L/∂w)^T = L̃ α."""
        return self.delta(alpha, w).unsqueeze(0)

    def dL_dw(self, alpha: Float[Tensor, "E M"], w: Float[Tensor, " M"]) -> Float[Tensor, " M"]:
        return self.delta(alpha, w) @ alpha

    def dL_dalpha(self, alpha: Float[Tensor, "E M"], w: Float[Tensor, " M"]) -> Float[Tensor, "E M"]:
        """∂L/∂α at fixed w."""
        return torch.outer(self.delta(alpha, w), w)


def _draw(E: int, M: int, products: int, weights: tuple[int, ...], seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    def positive(*shape: int) -> Tensor:
        return 0.1 + torch.rand(*shape, generator=generator, dtype=torch.float64)

    root = normal(products, products) / products**0.5
    return {
        "quadratic": root @ root.T,
        "linear": normal(products),
        "directions": normal(3, products) / products**0.5,
        "slope": positive(E, M),
        "alpha": positive(E, M),
        "w": normal(*weights),
    }
