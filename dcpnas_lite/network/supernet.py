"""Search space and supernet (Eqs. 4.20, 4.24, 4.27-4.28): every edge computes all operations, mixed by softmax(α).

    a^(j) = Σ_{i<j} Σ_m softmax_m(α^{(i,j)}) o_m(a^(i))                   (4.27-4.28)

Parent and Child are the same class: `Supernet(..., binary=False)` and `Supernet(..., binary=True)`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..validate import integer
from .operations import OPERATIONS, REGISTRY, Binary, FactorizedReduce, convolution, norm, operation
from .precision import MixedPrecision

if TYPE_CHECKING:
    from jaxtyping import Float


@contextmanager
def constant(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """Take these parameters as constants: no graph is recorded, and nothing kept, for a derivative nobody asks for."""
    parameters = list(parameters)
    for p in parameters:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in parameters:
            p.requires_grad_()


@dataclass(frozen=True)
class Space:
    """A cell search space: a complete DAG from `inputs` input nodes to `nodes` intermediate nodes, M operations an edge.

    `operations` are registered names (see `operations.register`) in the order of the columns of α, by default the source's.
    `keep` is how many incoming edges a node of the discrete cell keeps at most.
    """

    name: str
    inputs: int
    nodes: int
    cell_types: tuple[str, ...]
    operations: tuple[str, ...] = OPERATIONS
    keep: int = 2

    def __post_init__(self):
        if type(self.inputs) is not int or self.inputs not in (1, 2):
            raise ValueError(f"inputs: expected 1 or 2 input nodes, got {self.inputs!r}")
        if type(self.nodes) is not int or type(self.keep) is not int or self.nodes < 1 or self.keep < 1:
            raise ValueError(f"nodes, keep: expected integers of at least 1, got {self.nodes!r}, {self.keep!r}")
        if self.cell_types not in (("normal",), ("normal", "reduce")):
            raise ValueError(f"cell_types: expected ('normal',) or ('normal', 'reduce'), got {self.cell_types!r}")
        unknown = set(self.operations) - set(REGISTRY)
        if unknown or len(set(self.operations)) != len(self.operations) or not set(self.operations) - {"none"}:
            raise ValueError(f"operations: expected distinct names of {tuple(REGISTRY)}, got {self.operations!r}")

    @cached_property
    def edges(self) -> tuple[tuple[int, int], ...]:
        """(source node, target node) of every edge, in the order of the rows of α."""
        return tuple((i, j) for j in range(self.inputs, self.inputs + self.nodes) for i in range(j))


#: 3 edges, one cell type: 8³ = 512 cells, few enough to train them all.
MICRO = Space("micro", inputs=1, nodes=2, cell_types=("normal",), operations=OPERATIONS)
#: The source's space (that of DARTS): 14 edges × 8 operations, normal and reduction cells.
PAPER = Space("paper", inputs=2, nodes=4, cell_types=("normal", "reduce"), operations=OPERATIONS)


class Skeleton(MixedPrecision):
    """Stem, a chain of cells, classifier: what a supernet and a discrete network have in common.

    The resolution is halved (H → ⌈H/2⌉) and the channels are doubled at layers ⌊L/3⌋ and ⌊2L/3⌋, never at layer 0: by a
    reduction cell where there is that cell type, otherwise by 2 × 2 average pooling in front of an ordinary cell. Each cell
    input is brought to the cell's channels by a 1 × 1 convolution; a cell's output is the concatenation of its nodes.
    Stem and classifier stay real-valued in the 1-bit form, as is usual for 1-bit networks.

    `make_cell(cell_type, channels)` returns a module that maps the list of input nodes to the list of intermediate nodes.
    """

    def __init__(
        self,
        inputs: int,
        nodes: int,
        cell_types: tuple[str, ...],
        make_cell: Callable[[str, int], nn.Module],
        channels: int,
        layers: int,
        classes: int,
        in_channels: int,
        binary: Binary,
        affine: bool,
    ):
        super().__init__()
        channels, layers = integer("channels", channels, 1), integer("layers", layers, 1)
        classes, in_channels = integer("classes", classes, 1), integer("in_channels", in_channels, 1)
        self.inputs, self.in_channels, self.binary, self.affine = inputs, in_channels, binary, affine
        self.stem = nn.Sequential(nn.Conv2d(in_channels, channels, 3, padding=1, bias=False), norm(channels, affine))
        self.cells, self.preprocess, self.cell_types = nn.ModuleList(), nn.ModuleList(), []
        widths, halvings = [channels] * inputs, [0] * inputs  # of the cell inputs
        for layer in range(layers):
            reduction = layer > 0 and layer in (layers // 3, 2 * layers // 3)
            channels *= 2 if reduction else 1
            cell_type = "reduce" if reduction and "reduce" in cell_types else "normal"
            pool = reduction and cell_type == "normal"
            self.preprocess.append(
                nn.ModuleList(
                    self._preprocess(width, channels, binary, affine, halvings[-1] - halving, pool)
                    for width, halving in zip(widths, halvings, strict=True)
                )
            )
            self.cells.append(make_cell(cell_type, channels))
            self.cell_types.append(cell_type)
            widths = (widths + [nodes * channels])[-inputs:]
            halvings = (halvings + [halvings[-1] + reduction])[-inputs:]
        self.halvings = halvings[-1]
        self.classifier = nn.Linear(widths[-1], classes)

    @staticmethod
    def _preprocess(c_in: int, c_out: int, binary: Binary, affine: bool, behind: int, pool: bool) -> nn.Sequential:
        """1 × 1 convolution, of stride 2 where this input lags one halving behind the other."""
        steps = [FactorizedReduce(c_in, c_out, binary, affine)] if behind else convolution(c_in, c_out, 1, binary, affine)
        return nn.Sequential(*([nn.AvgPool2d(2, ceil_mode=True)] if pool else []), *steps)

    def run(self, x: Tensor, *mixes: dict[str, Tensor]) -> Tensor:
        """Logits (N, classes) of images (N, C, H, W); `mixes` holds softmax(α) per cell type in a supernet.

        Raises ValueError for images of another shape, and where BatchNorm is left with a single number to normalise.
        """
        if x.dim() != 4 or x.shape[1] != self.in_channels or 0 in x.shape:
            raise ValueError(f"images: expected shape (N, {self.in_channels}, H, W), at least one, got {tuple(x.shape)}")
        if len(x) == 1 and max(x.shape[2:]) <= 2**self.halvings and (self.training or not self.affine):
            raise ValueError(f"images: expected two or more, as {self.halvings} halvings make 1×1 of {x.shape[2]}×{x.shape[3]} "
                             "and BatchNorm needs two numbers a channel, got one image")  # fmt: skip
        states = [self.stem(x)] * self.inputs
        for preprocess, cell, cell_type in zip(self.preprocess, self.cells, self.cell_types, strict=True):
            inputs = [adapt(state) for adapt, state in zip(preprocess, states, strict=True)]
            out = torch.cat(cell(inputs, *(mix[cell_type] for mix in mixes)), dim=1)
            states = (states + [out])[-self.inputs :]
        return self.classifier(states[-1].mean((2, 3)))


class MixedEdge(nn.ModuleDict):
    """All operations of an edge by name; x (N, C, H, W) and mix (M), or one for each image (N, M) → Σ_m mix_m o_m(x)."""

    def forward(self, x: Float[Tensor, "N C H W"], mix: Float[Tensor, "*N M"]) -> Float[Tensor, "N C H2 W2"]:
        return sum(m.view(-1, 1, 1, 1) * operation(x) for m, operation in zip(mix.unbind(-1), self.values(), strict=True))


class MixedCell(nn.Module):
    """Input nodes and mix = softmax(α) (E, M), or one for each image (N, E, M) → intermediate nodes (Eqs. 4.27-4.28)."""

    def __init__(self, space: Space, cell_type: str, channels: int, binary: Binary):
        super().__init__()
        self.space, self.edges = space, nn.ModuleList()
        for i, _ in space.edges:
            stride = 2 if cell_type == "reduce" and i < space.inputs else 1
            self.edges.append(MixedEdge({n: operation(n, channels, stride, binary, affine=False) for n in space.operations}))

    def forward(self, inputs: list[Tensor], mix: Float[Tensor, "*N E M"]) -> list[Tensor]:
        nodes, edges = inputs + [0.0] * self.space.nodes, zip(self.space.edges, self.edges, mix.unbind(-2), strict=True)
        for (i, j), edge, weights in edges:
            nodes[j] = nodes[j] + edge(nodes[i], weights)
        return nodes[self.space.inputs :]


class Supernet(Skeleton):
    """Parent (`binary=False`) or Child (`binary=True`): images (N, C, H, W) → logits (N, classes).

    `alpha[cell_type]` is the (E, M) architecture parameter of a cell type, shared by all its cells; `alphas()` and
    `weights()` are the two disjoint parameter groups. α starts at 1e-3 times standard normal numbers, as in DARTS.
    All randomness comes from torch's global generator at construction.
    """

    def __init__(
        self,
        space: Space,
        channels: int = 8,
        layers: int = 3,
        classes: int = 10,
        in_channels: int = 1,
        binary: Binary = False,
    ):
        super().__init__(
            space.inputs,
            space.nodes,
            space.cell_types,
            lambda cell_type, width: MixedCell(space, cell_type, width, binary),
            channels,
            layers,
            classes,
            in_channels,
            binary,
            affine=False,
        )
        self.space = space
        shape = (len(space.edges), len(space.operations))
        self.alpha = nn.ParameterDict({t: nn.Parameter(1e-3 * torch.randn(shape)) for t in space.cell_types})

    def alphas(self) -> list[nn.Parameter]:
        """The architecture parameters, (E, M) per cell type."""
        return list(self.alpha.values())

    def weights(self) -> list[nn.Parameter]:
        """Everything the weight optimizer trains: all parameters but α."""
        return [p for name, p in self.named_parameters() if not name.startswith("alpha.")]

    def inherit(self, other: Supernet) -> None:
        """α ← α of another supernet of the same space (Algorithm 10, steps ii and iv)."""
        with torch.no_grad():
            for mine, theirs in zip(self.alphas(), other.alphas(), strict=True):
                mine.copy_(theirs)

    def forward(self, x: Float[Tensor, "N C H W"], alphas: Sequence[Tensor] | None = None) -> Float[Tensor, "N classes"]:
        """Logits; `alphas` stands in for the network's own α, as (E, M) or, one copy for each image, as (N, E, M)."""
        alphas = self.alphas() if alphas is None else alphas
        return self.mixed(x, {t: alpha.softmax(dim=-1) for t, alpha in zip(self.alpha, alphas, strict=True)})

    def mixed(self, x: Float[Tensor, "N C H W"], mixes: dict[str, Tensor]) -> Float[Tensor, "N classes"]:
        """Logits where the operations of a cell type have the shares `mixes[cell_type]` (E, M) in place of softmax(α)."""
        return self.run(x, mixes)

    def edge_operations(self, cell_type: str):
        """Yields (e, m, name, module) of every operation in every cell of a type."""
        for cell, kind in zip(self.cells, self.cell_types, strict=True):
            if kind == cell_type:
                for e, edge in enumerate(cell.edges):
                    for m, (name, op) in enumerate(edge.items()):
                        yield e, m, name, op

