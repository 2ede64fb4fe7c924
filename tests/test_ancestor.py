"""RBONN beside DCP-NAS: its lines against autograd on a problem of its own, the renaming, and the line at which they part."""

from __future__ import annotations

import pytest
import torch
from torch import einsum

from dcpnas_lite.checks import ancestor
from dcpnas_lite.checks.problems import SIZES, Case, deviation
from dcpnas_lite.derivation import trace

CASES = [Case(number) for number in range(len(SIZES))]
LINES = {pair.number: pair for pair in ancestor.PAIRS if pair.line}


def rbonn(number: str, **tensors) -> torch.Tensor:
    return ancestor.evaluate(LINES[number].line, {"w": tensors["w"], "Ĝ": tensors["G"], "∂A": tensors["dA"], "δ": tensors["one"]})


@pytest.mark.parametrize("rows, columns", [(3, 4), (5, 2), (4, 4)])
def test_rbonn_on_its_own_problem(rows, columns):
    """G(w, A) = ½ ‖b − A w‖², A_ii a smooth function of row i of w: 3.124 and 3.125 are exact, 3.129 is the row sum of the
    coupling and 3.130 keeps that sum, but not its entries."""
    draw = torch.Generator().manual_seed(rows)
    w, b, slope = (torch.randn(rows, columns, generator=draw, dtype=torch.float64) for _ in range(3))

    def scales(w):
        return 1 + (slope * torch.tanh(w)).sum(1)

    def loss(w, A):
        return 0.5 * (b - A @ w).square().sum()

    A = torch.diag(scales(w))
    (dG_dA,) = torch.autograd.grad(loss(w, leaf := A.clone().requires_grad_()), leaf)
    moving = w.clone().requires_grad_()
    (total,) = torch.autograd.grad(loss(moving, torch.diag(scales(moving))), moving)
    (direct,) = torch.autograd.grad(loss(moving, A), moving)
    coupling = total - direct
    given = dict(w=w, G=(A @ w - b).T, dA=slope * (1 - torch.tanh(w).square()), one=torch.eye(rows, dtype=torch.float64))

    assert deviation(rbonn("3.124", **given), dG_dA.T) < 1e-12
    assert deviation(rbonn("3.125", **given), coupling) < 1e-12
    full = torch.autograd.functional.jacobian(lambda w: torch.diag(scales(w)), w)  # (I, I, I, J)
    assert deviation(rbonn("3.126", **given), einsum("iiaj->iaj", full)) < 1e-12
    product = torch.stack([rbonn("3.127", **given) @ slice_i for slice_i in rbonn("3.126", **given)])
    assert deviation(rbonn("3.128", **given), product) < 1e-12
    assert deviation(rbonn("3.129", **given), einsum("iij->i", product)) < 1e-12  # "trace": row i of component i
    if rows == columns:
        assert deviation(rbonn("3.129", **given), einsum("iaa->i", product)) > 0.1  # not the trace of a square matrix
    assert deviation(rbonn("3.129", **given), coupling.sum(1)) < 1e-12
    assert deviation(rbonn("3.130", **given).sum(1), coupling.sum(1)) < 1e-12
    assert deviation(rbonn("3.130", **given), coupling) > 0.1


def tensors(case: Case) -> dict[str, torch.Tensor]:
    return {
        "α": case.normal(case.E, case.M), "L̃": case.normal(case.M, case.E), "∂w": case.normal(case.E, case.M),
        "δ": torch.eye(case.M, dtype=torch.float64),
    }  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=range(len(CASES)))
def test_the_heirs_lines_are_the_packages(case):
    t = tensors(case)
    alpha, L, dw = t["α"], t["L̃"], t["∂w"]
    heir = {pair.heir: ancestor.evaluate(pair.heir_line, t) for pair in LINES.values()}
    assert deviation(heir["4.44"], L @ alpha) < 1e-12
    assert deviation(heir["4.43"], trace.coupling(torch.diag(L @ alpha), trace.response_slices(dw))) < 1e-12
    assert deviation(heir["4.46"], trace.response_slices(dw)) < 1e-12
    assert deviation(heir["4.47"], trace.alpha_factor(alpha, L)) < 1e-12
    assert deviation(heir["4.48"].permute(1, 2, 0), trace.trace_tensor(alpha, L, dw)) < 1e-12
    assert deviation(heir["4.49"], trace.trace_components(alpha, L, dw)) < 1e-12
    assert deviation(heir["4.50"], -trace.psi_as_printed(L, dw) * alpha) < 1e-12
    C = heir["4.43"]  # of which the printed lines keep no sum, over the edges or over the operations
    assert min(deviation(heir["4.49"], C.sum(1)), *(deviation(heir["4.50"].sum(d), C.sum(d)) for d in (0, 1))) > 0.1


@pytest.mark.parametrize("case", CASES, ids=range(len(CASES)))
def test_they_are_equal_down_to_the_slices_and_part_at_4_47(case):
    t = tensors(case)
    errors = {
        pair.heir: deviation(ancestor.evaluate(ancestor.renamed(pair.line), t), ancestor.evaluate(pair.heir_line, t))
        for pair in LINES.values()
    }
    assert [number for number, error in errors.items() if error < 1e-12] == ["4.44", "4.43", "4.46"]
    assert min(error for error in errors.values() if error >= 1e-12) > 0.1


@pytest.mark.parametrize("case", CASES, ids=range(len(CASES)))
def test_renaming_is_transposing(case):
    """The renamed line, evaluated, is RBONN's own line on the transposed tensors; and the order is all that 4.48 lacks."""
    t = tensors(case)
    given = dict(w=t["α"].T, G=t["L̃"].T, dA=t["∂w"].T, one=t["δ"])
    for number, pair in LINES.items():
        result = rbonn(number, **given)
        turned = result if result.ndim == 1 else result.transpose(-1, -2)
        assert deviation(ancestor.evaluate(ancestor.renamed(pair.line), t), turned) < 1e-12
    reversed_order = torch.stack([slice_m @ t["L̃"] @ t["α"] for slice_m in trace.response_slices(t["∂w"])])
    assert deviation(ancestor.evaluate(ancestor.renamed(LINES["3.128"].line), t), reversed_order) < 1e-12


def test_renaming_is_one_to_one():
    assert ancestor.renamed("w:ik Ĝ:ki ∂A:ij -> ij") == "α:fm L̃:mf ∂w:em -> em"
    assert ancestor.renamed("∂A:ij δ:ia -> iaj") == "∂w:em δ:nm -> men"
    assert len(set(ancestor.NAMES.values())) == len(ancestor.NAMES)
    page = ancestor.markdown()
    assert page.count("\n") == len(ancestor.PAIRS) + 1 and all(line.count("|") == 4 for line in page.splitlines())
