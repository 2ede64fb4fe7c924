"""The supernet against a plain loop over edges and operations, and the search spaces."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from torch import nn

from dcpnas_lite.network.discrete import DiscreteNetwork
from dcpnas_lite.network.genotype import PUBLISHED, Genotype
from dcpnas_lite.network.operations import OPERATIONS
from dcpnas_lite.network.supernet import MICRO, PAPER, Space, Supernet

# (space, layers, image size, binary); with 2 or more layers PAPER has normal and reduction cells
NETWORKS = [(MICRO, 3, 8, False), (MICRO, 3, 8, True), (PAPER, 2, 4, False), (PAPER, 3, 8, True)]


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def images(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def build(space: Space, layers: int, binary: bool, spread: float = 1.0, seed: int = 0, **options) -> Supernet:
    torch.manual_seed(seed)
    net = Supernet(space, channels=2, layers=layers, classes=3, binary=binary, **options).double()
    for k, alpha in enumerate(net.alphas()):
        alpha.data = spread * images(*alpha.shape, seed=seed + 10 + k)
    return net


def plain_loop(net: Supernet, x: torch.Tensor) -> torch.Tensor:
    """Eqs. 4.27-4.28 edge by edge, every operation on its own, nothing computed once for several edges."""
    states = [net.stem(x)] * net.space.inputs
    for preprocess, cell, cell_type in zip(net.preprocess, net.cells, net.cell_types, strict=True):
        alpha = net.alpha[cell_type]
        nodes = [prepare(state) for prepare, state in zip(preprocess, states, strict=True)]
        for j in range(net.space.inputs, net.space.inputs + net.space.nodes):
            total = 0
            for e, (source, target) in enumerate(net.space.edges):
                if target == j:
                    exponentials = [alpha[e, m].exp() for m in range(len(net.space.operations))]
                    for m, name in enumerate(net.space.operations):
                        total = total + exponentials[m] / sum(exponentials) * cell.edges[e][name](nodes[source])
            nodes.append(total)
        states = (
            [*states[1:], torch.cat(nodes[net.space.inputs :], dim=1)] if net.space.inputs > 1 else [torch.cat(nodes[1:], dim=1)]
        )
    return net.classifier(states[-1].mean(dim=(2, 3)))


@pytest.mark.parametrize("space, layers, size, binary", NETWORKS)
def test_supernet_equals_the_plain_loop(space, layers, size, binary):
    net, x = build(space, layers, binary), images(2, 1, size, size)
    if space is PAPER:
        assert set(net.cell_types) == {"normal", "reduce"}
    ours, reference = net(x), plain_loop(net, x)
    torch.testing.assert_close(ours, reference, rtol=0, atol=1e-10)
    parameters = net.weights() + net.alphas()
    upstream = images(*ours.shape, seed=1)
    for got, want in zip(*(torch.autograd.grad(out, parameters, upstream) for out in (ours, reference)), strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=1e-10)
        assert want.any()


@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize("chosen", range(len(OPERATIONS)))
def test_one_hot_alpha_picks_the_operation(chosen, binary):
    """With a softmax that is exactly one-hot, the supernet is the discrete network of that cell with the same weights."""
    net, x = build(MICRO, 2, binary), images(4, 1, 8, 8)
    picks = [chosen, (chosen + 3) % 8, (chosen + 5) % 8]  # a different operation on each edge
    for e, m in enumerate(picks):
        net.alpha["normal"].data[e] = torch.where(torch.arange(8) == m, 0.0, -1e4)
    names = [OPERATIONS[m] for m in picks]
    discrete = discrete_of(net, Genotype.from_operations(MICRO, names))
    torch.testing.assert_close(net(x), discrete(x), rtol=0, atol=1e-10)
    others = [a for a in names if a != "none"]
    assert others and not torch.allclose(net(x), discrete_of(net, Genotype.from_operations(MICRO, names[::-1]))(x))


def test_one_hot_alpha_picks_the_cell_in_the_paper_space():
    net, x = build(PAPER, 3, True), images(2, 1, 8, 8)
    names = {"normal": ["none"] * 14, "reduce": ["none"] * 14}
    for cell_type, nodes in PUBLISHED.cells.items():
        for node, edges in enumerate(nodes, 2):
            for name, source in edges:
                names[cell_type][PAPER.edges.index((source, node))] = name
        for e, name in enumerate(names[cell_type]):
            picked = torch.arange(8) == OPERATIONS.index(name)
            net.alpha[cell_type].data[e] = torch.where(picked, 0.0, -1e4)
    whole = discrete_of(net, Genotype.from_operations(PAPER, names))
    torch.testing.assert_close(net(x), whole(x), rtol=0, atol=1e-10)


def discrete_of(net: Supernet, genotype: Genotype) -> nn.Module:
    """The discrete network of a genotype with one edge entry per edge of the space, given the supernet's weights."""
    width = net.stem[0].weight.shape[0]
    discrete = DiscreteNetwork(genotype, width, len(net.cells), 3, 1, net.binary).double()
    for norm in [m for m in discrete.modules() if isinstance(m, nn.BatchNorm2d)]:
        norm.track_running_stats = False  # as in the supernet
        norm.running_mean = norm.running_var = norm.num_batches_tracked = None
    pairs = [(getattr(net, part), getattr(discrete, part)) for part in ("stem", "preprocess", "classifier")]
    for cell, whole, cell_type in zip(net.cells, discrete.cells, net.cell_types, strict=True):
        chosen = [name for edges in genotype.cells[cell_type] for name, _ in edges]
        pairs += [(edge[name], op) for edge, name, op in zip(cell.edges, chosen, whole.operations, strict=True)]
    for mine, theirs in pairs:
        for value, parameter in zip(trained(mine), trained(theirs), strict=True):
            parameter.data = value.detach()
    return discrete


def trained(module: nn.Module) -> list[nn.Parameter]:
    """All parameters but those of BatchNorm, which start as the identity."""
    return [p for m in module.modules() if not isinstance(m, nn.BatchNorm2d) for p in m.parameters(recurse=False)]


@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize("space", [MICRO, PAPER])
def test_one_copy_of_alpha_per_image(space, binary):
    net, x = build(space, 2, binary), images(3, 1, 8, 8)
    copies = [a.detach().repeat(3, 1, 1).requires_grad_() for a in net.alphas()]
    out = net(x, copies)
    torch.testing.assert_close(out, net(x), rtol=0, atol=1e-12)
    upstream = images(*out.shape, seed=1)
    whole = torch.autograd.grad(net(x), net.alphas(), upstream)
    parts = torch.autograd.grad(out, copies, upstream)
    for part, gradient in zip(parts, whole, strict=True):
        assert part.shape == (3, *gradient.shape)
        torch.testing.assert_close(part.sum(0), gradient, rtol=0, atol=1e-12)
        assert not torch.allclose(part[0], part[1])


def test_other_alphas_stand_in_for_the_networks_own():
    net, other, x = build(MICRO, 2, False), build(MICRO, 2, False, spread=2.0), images(2, 1, 8, 8)
    expected = other(x)
    own = net(x)
    torch.testing.assert_close(net(x, other.alphas()), expected, rtol=0, atol=0)  # the weights are those of the same seed
    torch.testing.assert_close(net(x), own, rtol=0, atol=0)
    assert not torch.allclose(own, expected)


@pytest.mark.parametrize("space", [MICRO, PAPER])
def test_weights_and_alphas_are_disjoint_and_complete(space):
    net = build(space, 3, True)
    weights, alphas = {id(p) for p in net.weights()}, {id(p) for p in net.alphas()}
    assert not weights & alphas
    assert weights | alphas == {id(p) for p in net.parameters()}
    assert len(weights) + len(alphas) == len(net.weights()) + len(net.alphas())
    assert [tuple(a.shape) for a in net.alphas()] == [(len(space.edges), 8)] * len(space.cell_types)
    assert list(net.alpha) == list(space.cell_types)


def test_alpha_starts_small_and_reproducible():
    torch.manual_seed(3)
    first = Supernet(MICRO, channels=2, layers=1)
    torch.manual_seed(3)
    second = Supernet(MICRO, channels=2, layers=1)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert 0 < first.alphas()[0].abs().max() < 5e-3


def test_inherit_copies_alpha_and_nothing_else():
    parent, child = build(PAPER, 2, False, seed=0), build(PAPER, 2, True, seed=1)
    before = [w.clone() for w in child.weights()]
    identities = [id(a) for a in child.alphas()]
    child.inherit(parent)
    assert all(torch.equal(a, b) for a, b in zip(child.alphas(), parent.alphas(), strict=True))
    assert [id(a) for a in child.alphas()] == identities  # the optimizer keeps its hold on them
    assert all(torch.equal(a, b) for a, b in zip(child.weights(), before, strict=True))
    with torch.no_grad():
        parent.alphas()[0].zero_()
    assert child.alphas()[0].any()


def test_images_of_a_batch_are_normalised_together_and_leave_no_trace():
    net, x = build(MICRO, 2, True), images(4, 1, 8, 8)
    state = {name: value.clone() for name, value in net.state_dict().items()}
    first = net(x)
    net(5 * images(4, 1, 8, 8, seed=1) + 3)
    assert torch.equal(net(x), first)
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())


@pytest.mark.parametrize("space, layers, types, widths", [
    (MICRO, 1, ["normal"], [2]),
    (MICRO, 3, ["normal"] * 3, [2, 4, 8]),
    (PAPER, 2, ["normal", "reduce"], [2, 4]),
    (PAPER, 3, ["normal", "reduce", "reduce"], [2, 4, 8]),
    (PAPER, 6, ["normal", "normal", "reduce", "normal", "reduce", "normal"], [2, 2, 4, 4, 8, 8]),
])  # fmt: skip
def test_resolution_halves_and_channels_double_at_the_thirds(space, layers, types, widths):
    net, seen = build(dataclasses.replace(space, operations=("skip_connect",)), layers, True), []
    for cell in net.cells:
        cell.register_forward_hook(lambda module, arguments, nodes: seen.append([tuple(n.shape[1:]) for n in nodes]))
    net(images(2, 1, 16, 16))
    assert net.cell_types == types
    assert seen == [[(c, 32 // c, 32 // c)] * space.nodes for c in widths]


def test_sizes_of_the_spaces():
    assert MICRO.edges == ((0, 1), (0, 2), (1, 2))
    assert len(MICRO.operations) ** len(MICRO.edges) == 512
    assert len(list(itertools.product(MICRO.operations, repeat=len(MICRO.edges)))) == 512
    assert len(PAPER.edges) == 2 + 3 + 4 + 5 == 14
    assert PAPER.edges[:5] == ((0, 2), (1, 2), (0, 3), (1, 3), (2, 3))
    assert PAPER.cell_types == ("normal", "reduce") and MICRO.cell_types == ("normal",)
    assert PAPER.operations == MICRO.operations == OPERATIONS


@pytest.mark.parametrize("changes, message", [
    (dict(inputs=3), "inputs: expected 1 or 2 input nodes, got 3"),
    (dict(inputs=True), "inputs: expected 1 or 2 input nodes, got True"),
    (dict(nodes=0), "nodes.*: expected integers of at least 1, got 0"),
    (dict(nodes=1.5), "nodes.*: expected .*got 1.5"),
    (dict(keep=0), "keep.*: expected .*at least 1, got .*0"),
    (dict(cell_types=("reduce",)), r"cell_types: expected .*got \('reduce',\)"),
    (dict(operations=("none", "conv")), "operations: expected distinct names.*'conv'"),
    (dict(operations=("skip_connect", "skip_connect")), "operations: expected distinct names"),
    (dict(operations=("none",)), "operations: expected"),
    (dict(operations=()), "operations: expected"),
])  # fmt: skip
def test_a_bad_space_names_the_field(changes, message):
    good = dict(name="mine", inputs=1, nodes=2, cell_types=("normal",))
    Space(**good)
    with pytest.raises(ValueError, match=message):
        Space(**(good | changes))


@pytest.mark.parametrize("field", ["channels", "layers", "classes", "in_channels"])
@pytest.mark.parametrize("value", [0, -1, 2.0, True, "3", None])
def test_a_bad_size_names_the_field(field, value):
    with pytest.raises(ValueError, match=f"^{field}: expected an integer of at least 1, got {value!r}$"):
        Supernet(MICRO, **{field: value})


def test_sizes_of_any_integer_type():
    sizes = dict(channels=np.int64(2), layers=np.int32(3), classes=np.uint8(3), in_channels=torch.tensor(1))
    assert Supernet(MICRO, **sizes)(images(2, 1, 8, 8).float()).shape == (2, 3)


CELLS = {"micro": Genotype.from_operations(MICRO, ["sep_conv_3x3", "max_pool_3x3", "dil_conv_5x5"]), "paper": PUBLISHED}


@pytest.mark.parametrize("discrete", [False, True])
@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize("space", [MICRO, PAPER])
def test_images_of_every_size(space, binary, discrete):
    """Also those that cannot be halved, or have nothing left to halve: H → ⌈H/2⌉."""
    torch.manual_seed(0)
    sizes = dict(channels=2, layers=3, classes=3, binary=binary)
    net = DiscreteNetwork(CELLS[space.name], **sizes) if discrete else Supernet(space, **sizes)
    shapes = []
    for cell in net.cells:
        cell.register_forward_hook(lambda module, arguments, nodes: shapes.append({tuple(n.shape[2:]) for n in nodes}))
    halved = [False, True, True]
    squares = (*range(1, 10), 16, 17)  # two halvings tell a size by its remainder modulo 4
    for height, width in [*((n, n) for n in squares), (1, 9), (7, 12), (17, 2)]:
        shapes.clear()
        x = images(3, 1, height, width).float().requires_grad_()
        out = net(x)
        assert out.shape == (3, 3) and out.isfinite().all()
        expected, h, w = [], height, width
        for half in halved:
            h, w = ((h + 1) // 2, (w + 1) // 2) if half else (h, w)
            expected.append({(h, w)})
        assert shapes == expected
        (gradient,) = torch.autograd.grad((out * images(3, 3, seed=1)).sum(), x)
        assert gradient.isfinite().all()


@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize("space, size", [(MICRO, (5, 7)), (MICRO, (1, 1)), (PAPER, (3, 6)), (PAPER, (1, 1))])
def test_supernet_equals_the_plain_loop_at_sizes_that_cannot_be_halved(space, size, binary):
    net, x = build(space, 3, binary), images(3, 1, *size)
    torch.testing.assert_close(net(x), plain_loop(net, x), rtol=0, atol=1e-10)


def test_the_last_row_and_column_of_an_odd_size_are_averaged_too():
    net = build(dataclasses.replace(MICRO, operations=("skip_connect",)), 2, False)
    pool, x = net.preprocess[1][0][0], images(2, 4, 5, 4)
    out = pool(x)
    assert out.shape == (2, 4, 3, 2)
    torch.testing.assert_close(out[:, :, 2, 1], x[:, :, 4, 2:].mean(-1))
    torch.testing.assert_close(out[:, :, 1, 0], x[:, :, 2:4, :2].mean((-2, -1)))


def test_what_the_network_cannot_take_is_named():
    for net in (Supernet(PAPER, channels=2), DiscreteNetwork(PUBLISHED, channels=2)):
        for shape in ((2, 8, 8), (2, 3, 8, 8), (0, 1, 8, 8), (2, 1, 0, 8)):
            with pytest.raises(ValueError, match=rf"^images: expected shape \(N, 1, H, W\), .*got \({shape[0]}, {shape[1]}, "):
                net(torch.zeros(shape))
        with pytest.raises(ValueError, match="^images: expected two or more, as 2 halvings make 1×1 of 4×3 .*, got one image$"):
            net(torch.zeros(1, 1, 4, 3))
        assert net(torch.zeros(1, 1, 5, 3)).shape == net(torch.zeros(1, 1, 1, 5)).shape == (1, 10)
        assert net(torch.zeros(2, 1, 1, 1)).shape == (2, 10)
    assert net.eval()(torch.zeros(1, 1, 1, 1)).shape == (1, 10)  # a discrete network has running statistics


def test_a_smaller_space_of_ones_own():
    space = Space("mine", inputs=2, nodes=1, cell_types=("normal",), operations=("skip_connect", "sep_conv_3x3"))
    net, x = build(space, 3, True), images(2, 1, 8, 8)  # two inputs, of which one lags a halving behind
    torch.testing.assert_close(net(x), plain_loop(net, x), rtol=0, atol=1e-10)
