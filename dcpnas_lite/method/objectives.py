"""The objectives (Eqs. 4.21, 4.25-4.26, 4.30, 4.32, 4.42), each a pure function of logits or tensors.

All of them sum over classes and average over the batch.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..network import binarize
from ..network.binarize import BinaryConv2d, reconstruction_error

if TYPE_CHECKING:
    from jaxtyping import Float, Int


def nas_loss(logits: Float[Tensor, "N classes"], target: Int[Tensor, " N"] | Float[Tensor, "N classes"]) -> Float[Tensor, ""]:
    """L_NAS = −f̃ = −Σ_n p_n(X) log p_n(w, α) (Eq. 4.21); target is labels or a distribution p(X) over the classes."""
    return F.cross_entropy(logits, target)


def kl_gain(child_logits: Float[Tensor, "N classes"], parent_logits: Float[Tensor, "N classes"]) -> Float[Tensor, ""]:
    """G = Σ_n p_n log(p̂_n / p_n) = −KL(p ‖ p̂) ≤ 0 (Eq. 4.30); p is the Parent's softmax output, p̂ the Child's.

    0 where the Child's output equals the Parent's. The Parent's logits are taken as constants.
    """
    p = parent_logits.detach().softmax(1)
    return (p * (child_logits.log_softmax(1) - parent_logits.detach().log_softmax(1))).sum(1).mean()


def reconstruction_loss(pairs: Iterable[tuple[Tensor, Tensor]]) -> Float[Tensor, ""]:
    """L_R summed over (w, β) pairs (Eq. 4.23)."""
    return torch.stack([reconstruction_error(w, beta) for w, beta in pairs]).sum()


def binary_pairs(network: nn.Module) -> list[tuple[Tensor, Tensor]]:
    """(w, β) of every 1-bit convolution of a network, in module order."""
    return [(m.weight, m.beta()) for m in network.modules() if isinstance(m, BinaryConv2d)]


def network_reconstruction(network: nn.Module) -> Tensor:
    """L_R of a network: reconstruction_loss(binary_pairs(network)), the convolutions of one shape with β = mean |w| as one."""
    shapes: dict[torch.Size, list[Tensor]] = {}
    learned = []
    for module in network.modules():
        if isinstance(module, BinaryConv2d) and module.learned_beta is not None:
            learned.append((module.weight, module.beta()))
        elif isinstance(module, BinaryConv2d):
            shapes.setdefault(module.weight.shape, []).append(module.weight)
    groups = [torch.cat(group) for group in shapes.values()]
    return reconstruction_loss([*((w, binarize.scale(w)) for w in groups), *learned])


def cp_nas_loss(gain: Tensor, reconstruction: Tensor, mu: float) -> Tensor:
    """L_CP-NAS = −G + μ L_R (Eq. 4.26, reconstructed as 4.32 with λ = 0)."""
    return -gain + mu * reconstruction


def weight_loss(
    network: nn.Module,
    logits: Float[Tensor, "N classes"],
    target: Int[Tensor, " N"],
    soft: Float[Tensor, "N classes"] | None,
    lam: float,
    mu: float,
) -> Float[Tensor, ""]:
    """The loss of a weight step: L_NAS of a real-valued network (4.21); of a 1-bit one L_CP-NAS (4.26) or, with λ > 0,
    L_DCP-NAS (4.32), in which D is held constant, since 4.34 differentiates −G + μ L_R alone.

    soft: the Parent's logits; without them −L_NAS stands for G.
    """
    if not network.binary:
        return nas_loss(logits, target)
    gain = -nas_loss(logits, target) if soft is None else kl_gain(logits, soft)
    reconstruction = network_reconstruction(network) if mu > 0 else torch.zeros((), device=logits.device)
    if lam == 0:
        return cp_nas_loss(gain, reconstruction, mu)
    return dcp_nas_loss(gain, torch.zeros((), device=logits.device), reconstruction, lam, mu)


def alpha_loss(
    logits: Float[Tensor, "N classes"], target: Int[Tensor, " N"], soft: Float[Tensor, "N classes"] | None
) -> Float[Tensor, ""]:
    """The loss of an architecture step without λ D: −G against the Parent's logits `soft`, or L_NAS without them."""
    return nas_loss(logits, target) if soft is None else -kl_gain(logits, soft)


def dcp_nas_loss(gain: Tensor, distance: Tensor, reconstruction: Tensor, lam: float, mu: float) -> Tensor:
    """L_DCP-NAS = −G + λ D + μ L_R (Eq. 4.32)."""
    return -gain + lam * distance + mu * reconstruction
