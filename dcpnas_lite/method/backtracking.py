"""Decoupled optimization (Eqs. 4.50-4.53): the architecture step is corrected for the coupling of α and w.

    α̃^{t+1} = α^{t+1} + η ψ^t ⊛ α^t                                       (4.50)
    ψ̃^{t+1} = | ψ̃^t − η_ψ ∂L/∂ψ̃^t |,   ∂L/∂ψ̃^t = η ∂L/∂α̃^{t+1} ⊛ α^t      (4.51)
    only for the operations m with ranking(R(w_m)) > τ,   R(w_m) = ‖w_m‖²   (4.52, 4.53)

`Learned` is the source's rule; `Refreshed` measures the coupling instead of learning it; `no_backtracking` leaves the
optimizer's step alone. A rule of one's own is any callable that keeps to this:

- It is called with an `ArchitectureStep`, once a step for each cell type, and returns α̃^{t+1}: a tensor of α's shape, dtype
  and device with finite entries. The tensors it is given are copies, and a copy is taken of what it returns: it may change
  them, then and later.
- A rule with state may offer `state_dict() -> dict` and `load_state_dict(state)`, so that a search can be resumed. The state
  consists of tensors, numbers, strings, booleans, None, and of dicts, lists and tuples of these; a checkpoint keeps it apart
  from all else. A search uses a copy of such a rule. Without the two methods a rule starts anew where a search is resumed.
- Its attributes are its own: the search reads none of them. Only the ψ̃ of a `Learned` enters the history.
- A checkpoint knows its rule by `identity`, taken when the search starts, and is refused with any other.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..derivation import trace
from ..network.binarize import BinaryConv2d
from ..network.operations import REGISTRY
from ..network.supernet import Supernet
from ..validate import integer, number

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int

SHAPES = ("scalar", "operation", "edge", "full")
STEPS = ("gradient", "optimizer")


@dataclass(frozen=True)
class ArchitectureStep:
    """One architecture step of one network for one cell type, as a backtracking rule sees it."""

    network: str  # "parent" or "child"
    cell_type: str
    index: int  # architecture steps this network has made before
    alpha: Float[Tensor, "E M"]  # α^t, where the gradient was taken
    alpha_next: Float[Tensor, "E M"]  # α^{t+1}, after the optimizer
    gradient: Float[Tensor, "E M"]  # ∂L/∂α^t
    norms: Float[Tensor, " M"]  # R(w_m)
    #: Measures the exact one-step coupling at the cost of about three α steps; "gradient" or "optimizer": the step that w takes.
    coupling: Callable[..., Float[Tensor, "E M"]]


Rule = Callable[[ArchitectureStep], Tensor]


def apply(rule: Rule, step: ArchitectureStep) -> Float[Tensor, "E M"]:
    """α̃^{t+1} by a rule, which sees copies of `step`'s tensors; the result is a copy as well.

    ValueError, which names the rule, where it returns anything but a tensor of α's shape, dtype and device;
    FloatingPointError where an entry is not finite.
    """
    given = {f.name: v.clone() for f in dataclasses.fields(step) if isinstance(v := getattr(step, f.name), Tensor)}

    def coupling(by: str = "gradient") -> Tensor:
        if by not in STEPS:
            raise ValueError(f"coupling: expected one of {', '.join(STEPS)}, got {by!r}")
        return step.coupling(by).clone()

    out, alpha = rule(dataclasses.replace(step, **given, coupling=coupling)), step.alpha
    name = getattr(rule, "__name__", type(rule).__name__)
    if not isinstance(out, Tensor) or out.shape != alpha.shape:
        got = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
        raise ValueError(f"backtracking: expected a tensor of shape {tuple(alpha.shape)}, got {got} from the rule {name}")
    if (out.dtype, out.device, out.layout) != (alpha.dtype, alpha.device, alpha.layout):
        wanted, got = (f"{t.dtype}, {t.device}, {t.layout}" for t in (alpha, out))
        raise ValueError(f"backtracking: expected a tensor like α ({wanted}), got {got} from the rule {name}")
    if not out.isfinite().all():
        wrong = out[~out.isfinite()][0].item()
        raise FloatingPointError(f"the {step.network}'s α is not finite: {wrong} from the rule {name}")
    return out.detach().clone()


def recorded_psi(rule: Rule, network: str, cell_type: str) -> Tensor | None:
    """ψ̃ for the history, in its own shape: that of a `Learned`; any other rule has none."""
    return rule.psi.get(f"{network}/{cell_type}") if isinstance(rule, Learned) else None


def no_backtracking(step: ArchitectureStep) -> Float[Tensor, "E M"]:
    """α̃^{t+1} = α^{t+1}."""
    return step.alpha_next


def weight_norms(network: Supernet, cell_type: str) -> Float[Tensor, " M"]:
    """R(w_m) = ‖w_m‖² per operation, mean over the edges and cells of a type (Eq. 4.53).

    w_m is all convolution weights of the operation, β ∘ sign(w) where they are binarized. As in the source a pooling
    operation counts as w_m = 1/(3 × 3), the identity as 1, and none as 0.
    """
    operations, kernels = network.space.operations, dict[tuple, list]()
    count = torch.zeros(len(operations))
    for _, m, name, op in network.edge_operations(cell_type):
        count[m] += 1
        if REGISTRY[name].size is None:
            for conv in op.modules():
                if isinstance(conv, BinaryConv2d | nn.Conv2d):
                    kernels.setdefault((isinstance(conv, BinaryConv2d), conv.weight.shape), []).append((m, conv.weight))
    total = count * torch.tensor([REGISTRY[name].size or 0.0 for name in operations])
    for (binary, _), pairs in kernels.items():  # all kernels of one kind and shape at once
        owners, weights = zip(*pairs, strict=True)
        w = torch.stack(weights).detach().flatten(2)  # (kernels, C_out, weights of a channel)
        if binary:
            w = w.abs().mean(2, keepdim=True).expand_as(w)  # ‖β ∘ sign(w)‖² needs no sign
        total.index_add_(0, torch.tensor(owners), w.square().sum((1, 2)).to(total))
    return total / count.clamp(min=1)


def ranking(norms: Float[Tensor, " M"]) -> Int[Tensor, " M"]:
    """Rank 1 … M of each operation by R(w_m), 1 the smallest; ties go to the lower index (Eq. 4.52)."""
    return norms.argsort(stable=True).argsort(stable=True) + 1


def backtrack(
    alpha_next: Float[Tensor, "E M"],
    alpha: Float[Tensor, "E M"],
    psi: Float[Tensor, " ..."],
    eta: float,
    chosen: Bool[Tensor, " M"],
    printed: bool = False,
) -> Float[Tensor, "E M"]:
    """The update of 4.50 in the chosen columns, α^{t+1} in the others (Eq. 4.52, second branch as derived).

    printed: the second branch names its own left side, so nothing is assigned there, and those columns stay at α^t.
    """
    return torch.where(chosen, trace.update(alpha_next, alpha, psi, eta), alpha if printed else alpha_next)


def psi_gradient(
    gradient: Float[Tensor, "E M"],
    alpha: Float[Tensor, "E M"],
    eta: float,
    shape: tuple[int, ...],
    alpha_next: Float[Tensor, "E M"] | None = None,
    psi: Float[Tensor, " ..."] | None = None,
    chosen: Bool[Tensor, " M"] | None = None,
) -> Tensor:
    """∂L/∂ψ̃ = η ∂L/∂α̃^{t+1} ⊛ α^t, summed over the entries that share a component of ψ̃ (Eq. 4.51).

    gradient is taken at α̃^{t+1}, so it is the next step's own gradient: ψ̃ is learned by hypergradient descent at no cost. It is
    carried back through `backtrack`, whatever that is: what holds for 4.50 as it stands holds at every ψ̃ and α^{t+1}, and they
    may be left out.
    """
    psi = torch.zeros(shape, dtype=alpha.dtype, device=alpha.device) if psi is None else psi.detach().clone()
    alpha_next = torch.zeros_like(alpha) if alpha_next is None else alpha_next
    chosen = torch.ones(alpha.shape[1], dtype=torch.bool, device=alpha.device) if chosen is None else chosen
    psi.requires_grad_()
    whole = psi.squeeze() if tuple(shape) == (1, 1) != alpha.shape else psi
    return torch.autograd.grad(backtrack(alpha_next, alpha, whole, eta, chosen), psi, gradient)[0]


class Learned:
    """The source's rule: ψ̃ learned by 4.51, applied by 4.50 to the operations that 4.52 chooses.

    shape: what ψ̃ has one component for: "scalar" (1, 1), "operation" (1, M), "edge" (E, 1) or "full" (E, M).
    absolute: with the absolute value of 4.51 as printed, or without it. printed: the second branch of 4.52, see `backtrack`.
    eta, eta_psi: η of 4.50 and η_ψ of 4.51; psi: the starting value of every component.
    tau: operations of rank > τ are corrected. With 8 operations the default 4 leaves out what has no trained weight
    (none, pooling, identity): its ∂w/∂α is 0.
    A wrong argument raises ValueError naming it.
    """

    def __init__(
        self,
        shape: str = "full",
        absolute: bool = True,
        eta: float = 0.1,
        eta_psi: float = 1.0,
        psi: float = 0.01,
        tau: int = 4,
        printed: bool = False,
    ):
        if shape not in SHAPES:
            raise ValueError(f"shape: expected one of {', '.join(SHAPES)}, got {shape!r}")
        for name, value in dict(absolute=absolute, printed=printed).items():
            if type(value) is not bool:
                raise ValueError(f"{name}: expected True or False, got {value!r}")
        self.shape, self.absolute, self.printed, self.tau = shape, absolute, printed, integer("tau", tau, 0)
        self.eta, self.eta_psi, self.start = number("eta", eta, 0), number("eta_psi", eta_psi, 0), number("psi", psi)
        self.psi: dict[str, Tensor] = {}  # by "network/cell type"
        self.last: dict[str, dict[str, Tensor]] = {}  # α^t, α^{t+1}, the chosen operations and α̃^{t+1} of the last step

    def __call__(self, step: ArchitectureStep) -> Float[Tensor, "E M"]:
        key, last = f"{step.network}/{step.cell_type}", self.last.get(f"{step.network}/{step.cell_type}")
        if last is None:
            sizes = self.sizes(*step.alpha.shape)
            self.psi[key] = torch.full(sizes, self.start, dtype=step.alpha.dtype, device=step.alpha.device)
        elif torch.equal(step.alpha, last["result"]):  # else α was inherited, and the gradient says nothing about ψ̃
            psi = self.psi[key]
            where = last["alpha"], self.eta, psi.shape, last["alpha_next"], psi, last["chosen"]
            self.psi[key] = psi - self.eta_psi * psi_gradient(step.gradient, *where)
            if self.absolute:
                self.psi[key] = self.psi[key].abs()
        chosen = (ranking(step.norms) > self.tau).to(step.alpha.device)
        psi = self.psi[key].squeeze() if self.shape == "scalar" else self.psi[key]
        result = backtrack(step.alpha_next, step.alpha, psi, self.eta, chosen, self.printed)
        self.last[key] = {"alpha": step.alpha, "alpha_next": step.alpha_next, "chosen": chosen, "result": result}
        return result.clone()  # the caller may change it; the next step is compared with what it was

    def sizes(self, edges: int, operations: int) -> tuple[int, int]:
        """The shape of ψ̃ for α of shape (E, M)."""
        return {"scalar": (1, 1), "operation": (1, operations), "edge": (edges, 1), "full": (edges, operations)}[self.shape]

    def state_dict(self) -> dict:
        """ψ̃ and the last step, per network and cell type."""
        return {"psi": _copied(self.psi), "last": {key: _copied(last) for key, last in self.last.items()}}

    def load_state_dict(self, state: dict) -> None:
        """Take over copies of the tensors of `state_dict`."""
        self.psi, self.last = _copied(state["psi"]), {key: _copied(last) for key, last in state["last"].items()}


class Refreshed:
    """α̃^{t+1} = α^{t+1} − η C with the exact one-step coupling C (Eq. 4.43), measured anew every `every` steps.

    The correction −C itself is applied, not −(C/α) ⊛ α, which is the same number and breaks down where α is near 0.
    by: the step of the weights that C is the effect of, plain "gradient" descent by weight_lr or that of the "optimizer".
    networks: those whose α is corrected. A wrong argument raises ValueError naming it.
    """

    def __init__(self, every: int = 5, eta: float = 0.1, by: str = "gradient", networks: Sequence[str] = ("parent", "child")):
        self.every, self.eta = integer("every", every, 1), number("eta", eta, 0)
        if by not in STEPS:
            raise ValueError(f"by: expected one of {', '.join(STEPS)}, got {by!r}")
        if not networks or set(networks) - {"parent", "child"}:
            raise ValueError(f"networks: expected parent, child or both, got {networks!r}")
        self.by, self.networks = by, tuple(networks)
        self.correction: dict[str, Tensor] = {}

    def __call__(self, step: ArchitectureStep) -> Float[Tensor, "E M"]:
        if step.network not in self.networks:
            return step.alpha_next
        key = f"{step.network}/{step.cell_type}"
        if step.index % self.every == 0 or key not in self.correction:
            self.correction[key] = -step.coupling(self.by)
        return step.alpha_next + self.eta * self.correction[key]

    def state_dict(self) -> dict:
        """The last measured corrections −C."""
        return {"correction": _copied(self.correction)}

    def load_state_dict(self, state: dict) -> None:
        """Take over copies of the tensors of `state_dict`."""
        self.correction = _copied(state["correction"])


def _copied(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: t.clone() for name, t in tensors.items()}
