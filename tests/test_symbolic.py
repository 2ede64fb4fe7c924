"""The symbolic proofs: every line holds, every wrong one is refuted, and the symbols say what the package's functions compute."""

from __future__ import annotations

import dataclasses

import pytest
import sympy
import torch

from dcpnas_lite.checks import equations, symbolic
from dcpnas_lite.checks.problems import Case, deviation
from dcpnas_lite.derivation import trace
from dcpnas_lite.method import backtracking

ALL = [(number, index) for number, proofs in symbolic.PROOFS.items() for index in range(len(proofs))]


@pytest.mark.parametrize("number, index", ALL)
def test_the_line_holds_and_no_wrong_one_does(number, index):
    proof = symbolic.PROOFS[number][index]
    assert proof.holds(), proof.says
    for name, line in proof.wrong.items():
        assert not proof.holds(line), name


def test_every_number_of_the_derivation_has_a_proof_or_a_reason():
    numbers = {f"4.{n}" for n in range(42, 54)}
    assert set(symbolic.PROOFS) | set(symbolic.NONE) == numbers and not set(symbolic.PROOFS) & set(symbolic.NONE)
    for number in numbers:
        names = {name for proof in symbolic.PROOFS.get(number, ()) for name in proof.wrong}
        if equations.get(number).verdict == "corrected" and number in symbolic.PROOFS:
            assert "as printed" in names, number


def refuted_by_value(proof: symbolic.Proof, name: str, E: int, M: int) -> bool:
    s = symbolic.Symbols(E, M)
    line, left = proof.wrong[name](s), proof.left(s)
    return line is not None and line.shape == left.shape and not symbolic._same(left, line)


def test_a_printed_line_is_refuted_where_its_shape_fits_not_only_by_its_shape():
    for number in ("4.45", "4.49", "4.50"):
        for proof in symbolic.PROOFS[number]:
            for name in proof.wrong:
                if name == "as printed":
                    assert refuted_by_value(proof, name, 2, 2) and refuted_by_value(proof, name, 3, 3), number
    coupling = symbolic.PROOFS["4.49"][1]
    for E, M in symbolic.SIZES:
        assert refuted_by_value(coupling, "as printed", E, M) == ((E, M) != (1, 1))


def test_a_side_that_is_wrong_is_seen(monkeypatch):
    """The left side is no copy of the right one: each side alone, changed, refutes the line. And the score says so."""
    for proofs in symbolic.PROOFS.values():
        for proof in proofs:
            wrong = dataclasses.replace(proof, left=lambda s, left=proof.left: left(s) + sympy.ones(*left(s).shape))
            assert not wrong.holds(), proof.says
    broken = dataclasses.replace(symbolic.PROOFS["4.47"][0], right=lambda s: s.L * s.alpha)
    monkeypatch.setitem(symbolic.PROOFS, "4.47", [broken])
    assert equations.symbols("4.47") == "fails, 3/3"
    monkeypatch.setitem(symbolic.PROOFS, "4.47", [dataclasses.replace(broken, wrong={"the line itself": broken.left})])
    assert symbolic.score("4.47") == "fails, 0/1"


def test_equality_is_of_shape_and_of_every_entry():
    a, b = sympy.symbols("a b")
    assert symbolic._same(sympy.Matrix([(a + b) ** 2]), sympy.Matrix([a**2 + 2 * a * b + b**2]))
    assert symbolic._same(sympy.Matrix([a * b / a]), sympy.Matrix([b]))
    assert not symbolic._same(sympy.Matrix([a, b]), sympy.Matrix([[a, b]]))
    assert not symbolic._same(sympy.Matrix([a, b]), sympy.Matrix([a, a]))
    assert not symbolic._same(sympy.Matrix([a]), None)


@pytest.mark.parametrize("E, M", [(2, 3), (3, 2), (3, 3)])
def test_the_symbols_are_the_packages_functions(E, M):
    """At random numbers each line has the value that the package's function computes."""
    s, case = symbolic.Symbols(E, M), Case(0)
    alpha, delta, dw, start, psi = (case.normal(E, M) for _ in range(5))
    values = dict(zip(s.alpha, alpha.flatten().tolist(), strict=True))
    for matrix, tensor in ((s.delta, delta), (s.slope, dw), (s.start, start), (s.psi, psi)):
        values |= dict(zip(matrix, tensor.flatten().tolist(), strict=True))
    values |= {s.eta1: 0.3, s.eta2: 0.5}

    def same(line: sympy.Matrix, tensor: torch.Tensor) -> bool:
        numbers = torch.tensor([float(entry.subs(values)) for entry in line], dtype=torch.float64)
        return deviation(numbers, tensor.flatten()) < 1e-12

    def right(number: str, index: int = 0) -> sympy.Matrix:
        return symbolic.PROOFS[number][index].right(s)

    L = trace.loss_factor(delta)
    dL_dw, jacobian = torch.diag(L @ alpha), trace.response_slices(dw)
    C = trace.coupling(dL_dw, jacobian)
    assert same(right("4.44"), L @ alpha) and same(right("4.44", 1), dL_dw)
    assert same(right("4.45"), C) and same(right("4.45", 1), C) and same(right("4.49", 1), C)
    assert same(right("4.46"), jacobian)
    assert same(right("4.47"), trace.alpha_factor(alpha, L))
    assert same(right("4.48"), trace.trace_tensor(alpha, L, dw).permute(2, 0, 1))
    assert same(right("4.49"), trace.trace_components(alpha, L, dw))
    following = alpha - 0.3 * delta * (dw * alpha).sum(0)
    assert same(right("4.50"), trace.update(following, alpha, trace.psi_as_derived(alpha, C), 0.15))
    printed = symbolic.PROOFS["4.50"][0].wrong["as printed"](s)
    assert same(printed, trace.update(following, alpha, trace.psi_as_printed(L, dw), 0.15))
    shapes = ((E, M), (E, 1), (1, M), (1, 1))
    gradients = [backtracking.psi_gradient(delta, alpha, 0.3, shape).flatten() for shape in shapes]
    assert same(right("4.51"), torch.cat(gradients))
