"""Fairness by exhaustion: verdicts follow from the readings, the printed line is among them, a right one would be found."""

from __future__ import annotations

import pytest
import torch
from torch import einsum

from dcpnas_lite.checks import equations, readings
from dcpnas_lite.checks.problems import SIZES, Case
from dcpnas_lite.derivation import responses, toys, trace

CASES = [Case(number) for number in range(len(SIZES))]


@pytest.fixture(scope="module")
def tried() -> dict:
    return {entry: entry.tried() for entry in readings.LINES}


def of(tried: dict, number: str, printed: bool = True) -> dict[str, list[float]]:
    return next(tried[entry] for entry in readings.LINES if (entry.number, entry.printed) == (number, printed))


def test_the_verdicts_come_out_of_the_readings(tried):
    numbers = [entry.number for entry in readings.LINES if entry.printed]
    assert len(set(numbers)) == len(numbers)
    for number in numbers:
        assert readings.verdict(of(tried, number)) == equations.get(number).verdict, number
    called_wrong = {e.number for e in equations.TABLE if e.verdict in ("corrected", "under an assumption")}
    assert called_wrong - set(numbers) == {"4.34"}  # a term is missing there: no reading supplies one


def test_no_reading_of_a_corrected_line_is_right_on_any_problem(tried):
    """Not even where E = M lets every shape fit."""
    for number in ("4.25", "4.29", "4.41", "4.45", "4.49", "4.50", "4.52"):
        errors = [error for row in of(tried, number).values() for error in row]
        assert min(errors) > equations.WRONG, number


def test_which_are_right(tried):
    assert readings.right(of(tried, "4.37")) == ["E is the model's own"]
    assert readings.right(of(tried, "4.40")) == ["E is the model's own, p probabilities"]
    assert readings.right(of(tried, "4.44")) == [
        "matrix, α E×M, (∂L/∂w)ᵀ, L̃ α",
        "matrix, α M×E, (∂L/∂w)ᵀ, α L̃",
        "ℓ(α w), α E×M, (∂L/∂w)ᵀ, L̃ α",
        "ℓ(α w), α M×E, (∂L/∂w), α L̃",
    ]
    assert readings.right(of(tried, "4.46")) == ["explicit, shared", "explicit, per edge"]
    assert readings.right(of(tried, "4.48")) == ["explicit"]
    circles = readings.right(of(tried, "4.45", printed=False))
    assert len(circles) == 12 and "ℓ(α ⊛ w): Tr[L̃ α ∂W]" in circles
    assert "ℓ(α ⊛ w): Tr[αᵀ L̃ᵀ ∂W]" in circles and "ℓ(α ⊛ w): Tr[α L̃ ∂W]" not in circles  # the printed order: 4.20's layout
    assert readings.right(of(tried, "4.49", printed=False)) == ["α_fm L̃ᵀ_fm ∂w_em"]  # of all patterns of indices, one
    assert {n: len(of(tried, n)) for n in ("4.44", "4.45", "4.49", "4.50")} == {
        "4.44": 36, "4.45": 240, "4.49": 432, "4.50": 60,
    }  # fmt: skip
    assert len(of(tried, "4.49", printed=False)) == 100 and len(of(tried, "4.50", printed=False)) == 100
    # divided by entries and with no sum at all, α L̃ ∂w/∂α is C by cancelling α: the line as derived
    assert readings.right(of(tried, "4.50", printed=False)) == ["ℓ(α ⊛ w): L̃ by entries, one m, e′ = e, a vector, ⊛"]


@pytest.mark.parametrize("case", range(len(SIZES)))
def test_the_printed_line_is_among_the_readings(case):
    toy, J, L, C = Case(case).mixture()
    dw = einsum("mem->em", J)
    printed = trace.trace_components(toy.alpha, L, dw)
    assert readings.read_4_49(Case(case))["α L̃ ∂w, per edge"] == pytest.approx(readings.parallel(printed, C.sum(1)))
    correction = -trace.psi_as_printed(L, dw) * toy.alpha
    row = readings.read_4_50(Case(case))["ℓ(α ⊛ w): L̃, own m, Σ_e′, a vector, ⊛"]
    assert row == pytest.approx(readings.parallel(correction, C))
    assert readings.read_patterns(Case(case))["α_em L̃ᵀ_gm ∂w_gj"] == pytest.approx(row)
    toy = Case(case)
    toy.toy()  # the mixture is drawn first
    bilinear = toy.toy(toys.Bilinear)
    w, J = responses.Explicit(bilinear.phi)(bilinear.alpha)
    dw, C = einsum("mem->em", J), trace.coupling(bilinear.dL_dw(bilinear.alpha, w), J)
    correction = -trace.psi_as_printed(bilinear.factor(bilinear.alpha, w), dw) * bilinear.alpha
    row = readings.read_4_50(Case(case))["ℓ(α w): L̃, own m, Σ_e′, a vector, ⊛"]
    assert row == pytest.approx(readings.parallel(correction, C))


class OneEdge(Case):
    """With a single edge e and e′ are the same, and the bracket read element by element is the coupling (chapter 6)."""

    def __init__(self):
        super().__init__(0)
        self.E = 1


def test_a_right_reading_would_be_found():
    right = {name for name, error in readings.read_fewer_sums(OneEdge()).items() if error < 1e-9}
    assert "ℓ(α ⊛ w): L̃, one m, Σ_e′, a vector, ⊛" in right and readings.least(readings.read_4_50(OneEdge())) > 0.01
    # wrong verdicts are seen: a line with one right reading is not "corrected", one with none is
    assert readings.verdict({"a": [0.0, 0.0], "b": [1.0, 0.0]}) == "under an assumption"
    assert readings.verdict({"a": [0.0, float("inf")], "b": [1.0, 0.0]}) == "corrected"


def test_patterns_are_all_and_distinct():
    assert list(readings._partitions(3)) == [(0, 0, 0), (0, 0, 1), (0, 1, 0), (0, 1, 1), (0, 1, 2)]
    errors = readings.read_patterns(Case(0))
    assert len(errors) == 10 * 10 and len({round(e, 9) for e in errors.values()}) > 85  # a few differ by a factor alone


def test_parallel_is_blind_to_a_factor_alone():
    a, b = CASES[0].normal(3, 4), CASES[0].normal(3, 4)
    assert readings.parallel(-2.5 * a, a) < 1e-15
    assert readings.parallel(b, a) == pytest.approx((1 - torch.cosine_similarity(a.flatten(), b.flatten(), 0).item() ** 2) ** 0.5)
    assert readings.parallel(a.T, a) == float("inf") and readings.parallel(0 * a, a) == 1


def test_arranged_is_every_choice_in_every_order():
    a, b, c = CASES[0].normal(2, 3), CASES[0].normal(3, 2), CASES[0].normal(2, 3)
    found = dict(readings.arranged(a=readings.turned("a", a), b=readings.turned("b", b), c={"c": c}))
    assert len(found) == 2 * 2 * 6
    assert torch.equal(found["a b c"], a @ b @ c) and torch.equal(found["c aᵀ bᵀ"], c @ a.T @ b.T) and found["b a c"] is None


def test_the_table(tried):
    page = readings.markdown(tried)
    assert page.count("\n") == len(readings.LINES) + 1 and all(row.count("|") == 8 for row in page.splitlines())
    row = next(row for row in page.splitlines() if "C in the place of" in row)
    assert "| 240 | " in row and "| 12 | " in row and "and 8 more" in row
