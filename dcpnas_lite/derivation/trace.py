"""Every tensor between Eq. 4.43 and Eq. 4.50, as a pure function.

Letters: E edges, M operations, ``alpha`` (E, M), ``dL_dw`` (M,), ``factor`` = L̃ (M, E) whose column e is g̃_e,
``dw`` (E, M) with dw[e, m] = ∂w_m/∂α_{e,m}, ``jacobian`` (M, E, M) with jacobian[k, e, m] = ∂w_k/∂α_{e,m}.
E and M are read off the arguments, any floating dtype will do, and a wrong shape raises ValueError.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import torch
from torch import Tensor, einsum

if TYPE_CHECKING:
    from jaxtyping import Float


def _shapes(**tensors: tuple[Tensor, str]) -> None:
    """Bind each letter to the first size it meets and raise ValueError where a later tensor disagrees."""
    sizes = {"1": 1}
    for name, (tensor, letters) in tensors.items():
        axes, given = letters.split(), tuple(tensor.shape)
        expected = [sizes.get(axis, axis) for axis in axes]
        if len(axes) != len(given) or not all(sizes.setdefault(a, n) == n for a, n in zip(axes, given, strict=True)):
            raise ValueError(
                f"{name}: expected shape ({', '.join(axes)}) = ({', '.join(map(str, expected))}), got {given}"
            )


def coupling(dL_dw: Float[Tensor, " K"], jacobian: Float[Tensor, "K E M"]) -> Float[Tensor, "E M"]:
    """The exact coupling of 4.43, element by element: C[e, m] = Σ_k ∂L/∂w_k · ∂w_k/∂α_{e,m}.

    The K weights are the source's M, or any other number (a supernet has many more than M).
    """
    _shapes(dL_dw=(dL_dw, "K"), jacobian=(jacobian, "K E M"))
    return einsum("k,kem->em", dL_dw, jacobian)


def loss_factor(delta: Float[Tensor, "E M"]) -> Float[Tensor, "M E"]:
    """L̃ = δ^T of 4.44: column e is g̃_e = ∂ℓ/∂z_e, so that (∂L/∂W)^T = L̃ α with W = diag(w); ∂L/∂w is the diagonal of L̃ α."""
    _shapes(delta=(delta, "E M"))
    return einsum("em->me", delta)


def right_division(dL_dw: Float[Tensor, " M"], alpha: Float[Tensor, "E M"]) -> Float[Tensor, "1 E"]:
    """L̃ of 4.44, bilinear reading: the shortest L̃ with L̃ α = (∂L/∂w)^T, by pseudo-inverse.

    If (∂L/∂w)^T is no combination of the rows of α, no such L̃ exists: the closest one is returned with a warning that
    states the relative residual.
    """
    _shapes(alpha=(alpha, "E M"), dL_dw=(dL_dw, "M"))
    factor = einsum("m,me->e", dL_dw, torch.linalg.pinv(alpha.double()).to(alpha.dtype)).unsqueeze(0)
    residual = torch.linalg.vector_norm(factor @ alpha - dL_dw) / torch.linalg.vector_norm(dL_dw)
    if residual > torch.finfo(alpha.dtype).eps ** 0.5:
        warnings.warn(f"right division is not exact: ‖L̃ α − (∂L/∂w)^T‖ / ‖∂L/∂w‖ = {residual:.3g}", stacklevel=2)
    return factor


def matrix_factor(dL_dW: Float[Tensor, "M M"], alpha: Float[Tensor, "E M"]) -> Float[Tensor, "M E"]:
    """L̃ of 4.44, matrix reading: the shortest L̃ with L̃ α = (∂L/∂W)^T, by pseudo-inverse; dL_dW[k, m] = ∂L/∂W_{k,m}.

    For L = ℓ(α W) with W = diag(w) it exists in every size, as (∂L/∂W)^T = δ^T α; it is δ^T itself where the rows of α are
    independent (E ≤ M), another factor of the same product elsewhere. ValueError where no L̃ divides exactly.
    """
    _shapes(alpha=(alpha, "E M"), dL_dW=(dL_dW, "M M"))
    factor = dL_dW.T @ torch.linalg.pinv(alpha.double()).to(alpha.dtype)
    missed, size = torch.linalg.matrix_norm(factor @ alpha - dL_dW.T), torch.linalg.matrix_norm(dL_dW)
    if not missed <= torch.finfo(alpha.dtype).eps ** 0.5 * size:  # so written, nan is refused, too
        raise ValueError(f"dL_dW: expected (∂L/∂W)^T = L̃ α for some L̃, got one that misses every one by {missed / size:.3g}")
    return factor


def response_slices(dw: Float[Tensor, "E M"]) -> Float[Tensor, "M E M"]:
    """(∂w/∂α)_m of 4.46 for every m: slice m is E×M, its column m is dw[:, m], the rest is 0.

    This is the Jacobian of any response in which w_m depends on column m of α alone.
    """
    _shapes(dw=(dw, "E M"))
    return einsum("em,mk->mek", dw, torch.eye(dw.shape[1], dtype=dw.dtype, device=dw.device))


def alpha_factor(alpha: Float[Tensor, "E M"], factor: Float[Tensor, "M E"]) -> Float[Tensor, "E E"]:
    """α L̃ of 4.47: entry (e, e') is the inner product of row α_e with column g̃_{e'}."""
    _shapes(alpha=(alpha, "E M"), factor=(factor, "M E"))
    return einsum("ei,if->ef", alpha, factor)


def trace_tensor(
    alpha: Float[Tensor, "E M"], factor: Float[Tensor, "M E"], dw: Float[Tensor, "E M"]
) -> Float[Tensor, "E M M"]:
    """α L̃ ∂w/∂α of 4.48: slice [:, :, m] is α L̃ (∂w/∂α)_m, the matrix whose trace 4.49 takes."""
    _shapes(alpha=(alpha, "E M"), factor=(factor, "M E"), dw=(dw, "E M"))
    return einsum("ef,mfk->ekm", alpha_factor(alpha, factor), response_slices(dw))


def trace_components(
    alpha: Float[Tensor, "E M"], factor: Float[Tensor, "M E"], dw: Float[Tensor, "E M"]
) -> Float[Tensor, " E"]:
    """Tr[α L̃ ∂w/∂α]_e = α_e Σ_m Σ_{e'} g̃_{e'} ∂w_m/∂α_{e',m} of 4.49: the trace of 4.48 over its last two axes."""
    _shapes(alpha=(alpha, "E M"), factor=(factor, "M E"), dw=(dw, "E M"))
    return einsum("ei,if,fm->e", alpha, factor, dw)


def psi_as_printed(factor: Float[Tensor, "F E"], dw: Float[Tensor, "E M"]) -> Float[Tensor, "E F"]:
    """ψ of 4.50 as printed: −Σ_m Σ_{e'} g̃_{e'} ∂w_m/∂α_{e',m}, the same in each of the E rows.

    F = M in the mixture reading, where the bracket is a vector; F = 1 in the bilinear one, where it is a number.
    """
    _shapes(dw=(dw, "E M"), factor=(factor, "F E"))
    edges, operations = dw.shape
    if factor.shape[0] not in (1, operations):
        raise ValueError(f"factor: expected shape ({operations}, {edges}) or (1, {edges}), got {tuple(factor.shape)}")
    return -einsum("if,fm->i", factor, dw).repeat(edges, 1)


def psi_as_derived(alpha: Float[Tensor, "E M"], coupling: Float[Tensor, "E M"]) -> Float[Tensor, "E M"]:
    """ψ of 4.50 as derived: −C / α, so that −ψ ⊛ α is the exact coupling. A zero in α raises ValueError."""
    _shapes(alpha=(alpha, "E M"), coupling=(coupling, "E M"))
    if (alpha == 0).any():
        edge, operation = (alpha == 0).nonzero()[0].tolist()
        raise ValueError(f"alpha: expected no zero entry (psi = -C / alpha), got alpha[{edge}, {operation}] = 0")
    return -coupling / alpha


def update(
    alpha_next: Float[Tensor, "E M"], alpha: Float[Tensor, "E M"], psi: Float[Tensor, "*shape"], eta: float
) -> Float[Tensor, "E M"]:
    """The backtracked step of 4.50: α^{t+1} + η ψ ⊛ α^t, with ψ full (E, M), per edge (E, 1), per operation (1, M) or a
    number (). A correction −η C needs ψ = −C / α; in 4.43 η = η₁η₂.
    """
    _shapes(alpha=(alpha, "E M"), alpha_next=(alpha_next, "E M"))
    edges, operations = alpha.shape
    if tuple(psi.shape) not in {(edges, operations), (edges, 1), (1, operations), ()}:
        expected = f"({edges}, {operations}), ({edges}, 1), (1, {operations}) or ()"
        raise ValueError(f"psi: expected shape {expected}, got {tuple(psi.shape)}")
    return alpha_next + eta * psi * alpha


def captured(coupling: Float[Tensor, "E M"], alpha: Float[Tensor, "E M"], shape: str) -> float:
    """Share of ‖C‖² that C ≈ −ψ ⊛ α can carry with the best ψ (least squares) of one shape.

    ``shape``: "scalar" (one number), "operation" (1, M), "edge" (E, 1) or "full" (E, M). Returns nan where C = 0.
    """
    _shapes(alpha=(alpha, "E M"), coupling=(coupling, "E M"))
    # each row of the rearranged tensors is what one entry of ψ multiplies
    rearranged = {
        "scalar": lambda x: x.reshape(1, -1),
        "operation": lambda x: x.T,
        "edge": lambda x: x,
        "full": lambda x: x.reshape(-1, 1),
    }
    if shape not in rearranged:
        raise ValueError(f"shape: expected one of {', '.join(rearranged)}, got {shape!r}")
    C, a = rearranged[shape](coupling), rearranged[shape](alpha)
    inner, norm = (C * a).sum(1), (a * a).sum(1)
    best = torch.where(norm > 0, inner / norm, 0)
    return ((best * inner).sum() / (C * C).sum()).item()
