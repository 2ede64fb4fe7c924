"""The network of one genotype: what is trained and kept after a search."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from .binarize import BinaryConv2d
from .genotype import Genotype
from .operations import Binary, operation
from .supernet import Skeleton

if TYPE_CHECKING:
    from jaxtyping import Float


class DiscreteCell(nn.Module):
    """One operation an edge; input nodes → intermediate nodes. An edge `none` is not computed, a node without edges is zero."""

    def __init__(self, nodes: tuple, inputs: int, channels: int, reduction: bool, binary: Binary):
        super().__init__()
        self.nodes, self.stride = nodes, 2 if reduction else 1
        self.operations = nn.ModuleList(
            operation(name, channels, 2 if reduction and source < inputs else 1, binary)
            for edges in nodes
            for name, source in edges
        )

    def forward(self, inputs: list[Tensor]) -> list[Tensor]:
        nodes = list(inputs)
        operations = iter(self.operations)
        for edges in self.nodes:
            terms = [(name, next(operations), nodes[source]) for name, source in edges]
            terms = [op(x) for name, op, x in terms if name != "none"]
            nodes.append(sum(terms[1:], terms[0]) if terms else torch.zeros_like(inputs[0][:, :, :: self.stride, :: self.stride]))
        return nodes[len(inputs) :]


class DiscreteNetwork(Skeleton):
    """Real-valued or 1-bit network of a genotype: images (N, C, H, W) → logits (N, classes)."""

    def __init__(
        self,
        genotype: Genotype,
        channels: int = 16,
        layers: int = 3,
        classes: int = 10,
        in_channels: int = 1,
        binary: Binary = True,
    ):
        super().__init__(
            genotype.inputs,
            len(genotype.normal),
            tuple(genotype.cells),
            lambda t, width: DiscreteCell(genotype.cells[t], genotype.inputs, width, t == "reduce", binary),
            channels,
            layers,
            classes,
            in_channels,
            binary,
            affine=True,
        )
        self.genotype = genotype

    def forward(self, x: Float[Tensor, "N C H W"]) -> Float[Tensor, "N classes"]:
        return self.run(x)

    def size(self) -> dict[str, int]:
        """Parameters stored as 1 bit, parameters stored as 32-bit floats (their scales β included), and the bits of both."""
        convolutions = [m for m in self.modules() if isinstance(m, BinaryConv2d)]
        one_bit = sum(m.weight.numel() for m in convolutions)
        scales = sum(m.weight.shape[0] for m in convolutions if m.learned_beta is None)
        real = sum(p.numel() for p in self.parameters()) - one_bit + scales
        return {"one_bit": one_bit, "real": real, "bits": one_bit + 32 * real}
