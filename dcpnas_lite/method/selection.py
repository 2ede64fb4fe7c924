"""From a searched supernet to a cell, by what each operation is worth to it.

Algorithm 10 ends with α, and the source reads the cell off its largest entries (`discretize`). The largest share in the mixture
is not the largest contribution, though (R. Wang et al., *Rethinking architecture selection in differentiable NAS*, ICLR 2021):
here an operation is chosen by how much the loss of the supernet rises when it is taken away. `short_list` adds the cells that are
one edge away from such a choice, told apart by what the supernet loses where it computes nothing but that cell.
"""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..data import Split
from ..network.genotype import Genotype, discretize
from ..network.supernet import Space, Supernet
from .objectives import nas_loss

if TYPE_CHECKING:
    from jaxtyping import Float, Int


SELECTION_IMAGES = 512  # validation images that a selection by perturbation looks at


def read_cell(net: Supernet, validation: Split, selection: str) -> Genotype:
    """The cell of a searched supernet: by the "strength" of α, or by "perturbation" on the first validation images."""
    if selection == "strength":
        return discretize(net.space, {t: a.cpu() for t, a in net.alpha.items()})
    return perturbation(net, *_images(net, validation))


def short_list(net: Supernet, cell: Genotype, validation: Split, n: int) -> list[Genotype]:
    """`cell` and, best first, the n − 1 of its neighbours whose one-hot loss on the first validation images is smallest.

    Ties go to the neighbour that comes first. There may be fewer than n.
    """
    images = _images(net, validation)
    return [cell, *sorted(neighbours(net.space, cell), key=lambda other: one_hot_loss(net, other, *images))][:n]


def _images(net: Supernet, validation: Split) -> tuple[Tensor, Tensor]:
    device = next(net.parameters()).device
    x, y = validation[slice(SELECTION_IMAGES)]
    return x.to(device), y.to(device)


def perturbation(net: Supernet, x: Float[Tensor, "N C H W"], y: Int[Tensor, " N"]) -> Genotype:
    """The cell of a supernet by perturbation: edge by edge, the operation without which the loss L_NAS on (x, y) is largest.

    An edge that is decided keeps that operation alone while the next ones are decided. Where a node has more than `space.keep`
    incoming edges, those go, one at a time, without which the loss is smallest. `none` is never chosen, ties go to the
    lower index. The supernet is left as it is.
    """
    space, candidates = net.space, [m for m, name in enumerate(net.space.operations) if name != "none"]
    alphas = {t: a.detach().clone() for t, a in net.alpha.items()}

    def loss_without(cell_type: str, edge: int, operations: slice | int) -> float:
        row = alphas[cell_type][edge]
        before = row.clone()
        row[operations] = -math.inf
        mixes = {t: a.softmax(-1).nan_to_num(0.0) for t, a in alphas.items()}  # an edge without operations has no softmax
        row.copy_(before)
        with torch.no_grad():
            return nas_loss(net.mixed(x, mixes), y).item()

    for cell_type, alpha in alphas.items():
        for edge in range(len(space.edges)):
            losses = [loss_without(cell_type, edge, m) for m in candidates]
            best = candidates[losses.index(max(losses))]
            alpha[edge] = -math.inf
            alpha[edge, best] = 0.0
        for node in range(space.inputs, space.inputs + space.nodes):
            incoming = [e for e, (_, j) in enumerate(space.edges) if j == node]
            while len(incoming) > space.keep:
                losses = [loss_without(cell_type, edge, slice(None)) for edge in incoming]
                alpha[incoming.pop(losses.index(min(losses)))] = -math.inf
    return discretize(space, {t: a.nan_to_num(neginf=-1e9) for t, a in alphas.items()})


def one_hot_loss(net: Supernet, cell: Genotype, x: Float[Tensor, "N C H W"], y: Int[Tensor, " N"]) -> float:
    """L_NAS of the supernet where each edge of `cell` has its operation with share 1, and everything else has none."""
    space = net.space
    mixes = {t: torch.zeros_like(a) for t, a in net.alpha.items()}
    for cell_type, source, target, name in cell.edges():
        mixes[cell_type][space.edges.index((source, target)), space.operations.index(name)] = 1.0
    with torch.no_grad():
        return nas_loss(net.mixed(x, mixes), y).item()


def neighbours(space: Space, cell: Genotype) -> list[Genotype]:
    """All cells that differ from `cell` in one edge: another operation on it (not `none`), or the same from another source."""
    found = []
    for cell_type, nodes in cell.cells.items():
        for j, edges in enumerate(nodes):
            for k, (name, source) in enumerate(edges):
                others = [(o, source) for o in space.operations if o not in (name, "none")]
                others += [(name, i) for i in range(space.inputs + j) if i not in [i for _, i in edges]]
                for edge in others:
                    changed = tuple(sorted([*edges[:k], edge, *edges[k + 1 :]], key=lambda e: e[1]))
                    cells = {cell_type: (*nodes[:j], changed, *nodes[j + 1 :])}
                    found.append(dataclasses.replace(cell, **cells))  # type: ignore[arg-type]
    return found
