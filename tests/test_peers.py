"""Our numbers against those of curvlinops, TorchOpt, larq and DARTS; the first two are skipped where they are not installed."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call

from dcpnas_lite.data import digits
from dcpnas_lite.derivation import responses, toys
from dcpnas_lite.method.coupling import one_step_coupling
from dcpnas_lite.method.objectives import alpha_loss, kl_gain, weight_loss
from dcpnas_lite.method.tangent import fisher_product, hessian_product
from dcpnas_lite.network.binarize import scale, sign
from dcpnas_lite.network.genotype import discretize
from dcpnas_lite.network.supernet import MICRO, PAPER, Space, Supernet

IMAGES = 9


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def network(space, layers: int, binary: bool) -> tuple[Supernet, torch.Tensor, torch.Tensor]:
    """A supernet in float64 with α of the order of 1, and two batches of images with their labels."""
    torch.manual_seed(3)
    net = Supernet(space, channels=2, layers=layers, binary=binary).double()
    with torch.no_grad():
        for k, alpha in enumerate(net.alphas()):
            alpha.copy_(normal(*alpha.shape, seed=k))
    part = digits(size=8).train
    return net, part.x[: 2 * IMAGES].double().split(IMAGES), part.y[: 2 * IMAGES].split(IMAGES)


NETWORKS = pytest.mark.parametrize(("space", "layers", "binary"), [
    (MICRO, 1, False), (MICRO, 2, True), (PAPER, 2, False), (PAPER, 2, True),
])  # fmt: skip


def close(got, expected, rtol: float = 1e-9) -> None:
    """Two lists of tensors agree, each as one vector, and are not zero."""
    got, expected = (torch.cat([t.detach().flatten() for t in side]) for side in (got, expected))
    assert expected.norm() > 1e-6
    difference = (got - expected).norm() / expected.norm()
    assert difference < rtol, f"relative difference {difference:.1g}"


# -- curvlinops: curvature (4.33, 4.36-4.41) --------------------------------------------------------------------------


@NETWORKS
def test_curvature_of_curvlinops(space, layers, binary):
    """Its loss is the cross-entropy with the Parent's p, which is −G but for a constant: H_G is minus its Hessian, F its GGN."""
    curvlinops = pytest.importorskip("curvlinops")
    net, (x, _), _ = network(space, layers, binary)
    soft = normal(IMAGES, 10, seed=5)
    v = [normal(*a.shape, seed=7 + k) for k, a in enumerate(net.alphas())]
    how = net, nn.CrossEntropyLoss(), net.alphas(), [(x, soft.softmax(1))], False, False
    close([-t for t in hessian_product(kl_gain(net(x), soft), net.alphas(), v)], curvlinops.HessianLinearOperator(*how) @ v)
    close(fisher_product(lambda alphas: net(x, alphas), net.alphas(), v), curvlinops.GGNLinearOperator(*how) @ v)


# -- TorchOpt: responses and coupling (4.43) --------------------------------------------------------------------------


@NETWORKS
def test_coupling_through_a_step_of_torchopt(space, layers, binary):
    """dL/dα through one differentiable step of its SGD, less the direct part at the weights after the step."""
    torchopt = pytest.importorskip("torchopt")
    net, x, y = network(space, layers, binary)
    names, weights = zip(*[(n, p) for n, p in net.named_parameters() if not n.startswith("alpha.")], strict=True)
    by_weights = lambda call: weight_loss(net, call(x[0]), y[0], None, 0.0, 0.0)  # noqa: E731
    by_alphas = lambda call: alpha_loss(call(x[1]), y[1], None)  # noqa: E731

    optimizer = torchopt.sgd(lr=0.3)
    gradient = torch.autograd.grad(by_weights(net), weights, create_graph=True)
    updates, _ = optimizer.update(gradient, optimizer.init(weights), params=weights, inplace=False)
    moved = torchopt.apply_updates(weights, updates, inplace=False)

    def slope(state) -> tuple[torch.Tensor, ...]:
        call = lambda images: functional_call(net, dict(zip(names, state, strict=True)), images)  # noqa: E731
        return torch.autograd.grad(by_alphas(call), net.alphas(), retain_graph=True)

    expected = [total - direct for total, direct in zip(slope(moved), slope([w.detach() for w in moved]), strict=True)]
    close(one_step_coupling(net, by_weights, by_alphas, weights, net.alphas(), 0.3), expected)


@pytest.mark.filterwarnings("ignore:We've integrated functorch:FutureWarning")
@pytest.mark.parametrize("toy", [toys.LinearMixture, toys.Bilinear])
@pytest.mark.parametrize(("E", "M"), [(3, 4), (5, 2)])
def test_implicit_response_of_torchopt(toy, E, M):
    """∂w*/∂α of its implicit differentiation of the stationary point, row by row."""
    torchopt = pytest.importorskip("torchopt")
    toy = toy.random(E, M, seed=E)
    w, jacobian = responses.Implicit(toy.regularized)(toy.alpha, toy.w)

    def stationary(w, alpha):
        return toy.dL_dw(alpha, w) + w

    cg = torchopt.linear_solve.solve_normal_cg(maxiter=100, rtol=0.0, atol=1e-14)

    @torchopt.diff.implicit.custom_root(stationary, argnums=1, solve=cg)
    def solve(start, alpha):
        return w

    alpha = toy.alpha.clone().requires_grad_()
    solution = solve(toy.w, alpha)
    rows = [torch.autograd.grad(solution[k], alpha, retain_graph=True)[0] for k in range(M)]
    close([jacobian], [torch.stack(rows)], rtol=1e-7)


# -- larq: sign, its derivative and the scale (4.22, 4.35) ------------------------------------------------------------


def test_sign_and_scale_of_larq():
    """What larq 0.13 expects in math_test.py and quantizers_test.py (test_ste_grad, test_magnitude_aware_sign_*), as numbers."""
    x = torch.tensor([-2.0, -1.001, -1.0, -0.5, -0.0, 0.0, 0.5, 1.0, 1.001, 2.0], dtype=torch.float64, requires_grad=True)
    (window,) = torch.autograd.grad(sign(x).sum(), x)
    assert sign(x).tolist() == [-1, -1, -1, -1, 1, 1, 1, 1, 1, 1]
    assert window.tolist() == [0, 0, 1, 1, 1, 1, 1, 1, 0, 0]

    kernel = torch.tensor([[0.5, -1.5, 0.25, -0.75], [2.0, -0.5, 0.125, -0.375]], dtype=torch.float64, requires_grad=True)
    constant = scale(kernel).detach().unsqueeze(1)  # larq stops the gradient at the scale, we do not
    assert (constant * sign(kernel)).tolist() == [[0.75, -0.75, 0.75, -0.75], [0.75, -0.75, 0.75, -0.75]]
    (slope,) = torch.autograd.grad((constant * sign(kernel)).sum(), kernel)
    assert slope.tolist() == [[0.75, 0.0, 0.75, 0.75], [0.0, 0.75, 0.75, 0.75]]


# -- DARTS: reading the cell ------------------------------------------------------------------------------------------

PRIMITIVES = "none max_pool_3x3 avg_pool_3x3 skip_connect sep_conv_3x3 sep_conv_5x5 dil_conv_3x3 dil_conv_5x5".split()


def test_cells_of_darts():
    """The cells that `Network.genotype` in cnn/model_search.py of quark0/darts reads from these 400 α, by their digest.

    It names the stronger of a node's two edges first, we the one from the earlier node: the digest is of ours.
    """
    space = Space("darts", inputs=2, nodes=4, cell_types=("normal",), operations=tuple(PRIMITIVES))
    alphas = torch.from_numpy(np.random.default_rng(0).standard_normal((400, 14, 8)))
    cells = [discretize(space, {"normal": alpha}).normal for alpha in alphas]
    assert cells[0] == (
        (("dil_conv_3x3", 0), ("skip_connect", 1)),
        (("sep_conv_5x5", 0), ("dil_conv_5x5", 2)),
        (("dil_conv_3x3", 2), ("avg_pool_3x3", 3)),
        (("dil_conv_5x5", 0), ("dil_conv_5x5", 1)),
    )
    digest = hashlib.sha256(json.dumps(cells).encode()).hexdigest()
    assert digest == "41f507e9a5dc6b267e693e676a15a03750c64f721d5c7880f0be51f53f60e6e2"
