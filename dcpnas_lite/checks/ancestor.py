"""The derivation's ancestor, RBONN (Eqs. 3.121–3.136 of the source book), beside 4.42–4.52, and renamed by program.

A line is written as its factors with their indices, "w:ik Ĝ:ka -> ia". RBONN's letters: weights w (I, J), scales A (I, I)
diagonal, Ĝ (J, I) with (∂G/∂A)^T = w Ĝ, ∂A (I, J) with ∂A[i, j] = ∂A_{i,i}/∂w_{i,j}, δ the identity. ``renamed`` writes the
same line in the letters of DCP-NAS: α for w, the weights of the operations for A, m for i, e for j. There α is E×M where RBONN's
w is I×J, one row per operation, so that every matrix is transposed.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from torch import Tensor, einsum

from .table import link

NAMES = {"w": "α", "Ĝ": "L̃", "∂A": "∂w", "δ": "δ"}
LETTERS = str.maketrans("iajk", "mnef")  # rows i and a are operations, columns j and k edges


class Pair(NamedTuple):
    """One row: number, TeX and indices (empty where the line is no product) of each, and what the renaming shows."""

    number: str
    tex: str
    line: str
    heir: str
    heir_tex: str
    heir_line: str
    shows: str


PAIRS = (
    Pair(
        "3.122", r"\arg\min_{w,A} L_S + \lambda\,G(w, A)", "",
        "4.42", r"\arg\min_{\alpha,w} L + \operatorname{reg}(w)", "", "the same; A is a diagonal matrix",
    ),
    Pair(
        "3.124", r"(\partial G/\partial A)^T = w\,\hat G", "w:ik Ĝ:ka -> ia",
        "4.44", r"\tilde L = (\partial L/\partial w)^T / \alpha", "α:fm L̃:nf -> nm", "the same, if w is a matrix, too",
    ),
    Pair(
        "3.125", r"\operatorname{Tr}[w\,\hat G\;\partial A/\partial w_{i,j}]", "w:ik Ĝ:ki ∂A:ij -> ij",
        "4.43", r"\operatorname{Tr}[(\partial L/\partial w)^T \partial w/\partial\alpha]", "α:fm L̃:mf ∂w:em -> em",
        "the same: C, entry by entry",
    ),
    Pair(
        "3.126", r"\partial A_{i,i}/\partial w_{i,j} \text{ in row } i", "∂A:ij δ:ia -> iaj",
        "4.46", r"\partial w_m/\partial\alpha_{e,m} \text{ in column } m",
        "∂w:em δ:mn -> men", "the same: a number by a matrix, for a matrix by a number",
    ),
    Pair(
        "3.127", r"(w\,\hat G)_{i,a} = w_i\,\hat g_a", "w:ik Ĝ:ka -> ia",
        "4.47", r"(\alpha\tilde L)_{e,e'} = \alpha_e\,\tilde g_{e'}", "α:ei L̃:if -> ef",
        "they part: factors transposed, order kept",
    ),
    Pair(
        "3.128", r"w_a\,\hat g_i\,\partial A_{i,i}/\partial w_{i,j}", "w:ak Ĝ:ki ∂A:ij -> iaj",
        "4.48", r"\alpha_e\sum_{e'}\tilde g_{e'}\,\partial w_m/\partial\alpha_{e',m}", "α:ei L̃:if ∂w:fm δ:mn -> men", "apart",
    ),
    Pair(
        "3.129", r"w_i\,\hat g_i \sum_j \partial A_{i,i}/\partial w_{i,j}", "w:ik Ĝ:ki ∂A:ij -> i",
        "4.49", r"\alpha_e\sum_m\sum_{e'}\tilde g_{e'}\,\partial w_m/\partial\alpha_{e',m}", "α:ei L̃:if ∂w:fm -> e",
        "apart: a sum of C; no sum of C",
    ),
    Pair(
        "3.130", r"-\eta_2\lambda\,[\hat g_i \sum_j \partial A_{i,i}/\partial w_{i,j}] \circledast w",
        "w:ij Ĝ:ji ∂A:ik -> ij",
        "4.50", r"-\eta\,[\sum_m\sum_{e'}\tilde g_{e'}\,\partial w_m/\partial\alpha_{e',m}] \circledast\alpha",
        "α:ei L̃:if ∂w:fm -> ei",
        "apart: ⊛ for an inner product in both; keeps these sums; keeps none",
    ),
    Pair(
        "3.131", r"U \circ \operatorname{DReLU}(w, A)", "",
        "4.52", r"\eta\,\tilde\psi\circledast\alpha", "", "U becomes ψ̃: the bracket is learned",
    ),
    Pair(
        "3.133", r"w_i \text{ if chosen, else } 0", "",
        "4.52", r"\tilde\alpha_{:,m} \text{ otherwise}", "", "0 added, as in 4.52 as derived",
    ),
    Pair(
        "3.134", r"\operatorname{ranking} > \operatorname{int}(C_{out}\,\tau)", "",
        "4.52", r"\operatorname{ranking} > \tau", "", "τ was a fraction; 4.52 does not say",
    ),
    Pair(
        "3.135", r"\lvert U - \eta_3\,\partial L/\partial U\rvert, \; U \ge 0", "",
        "4.51", r"\lvert\tilde\psi - \eta_\psi\,\partial L/\partial\tilde\psi\rvert", "",
        "the bars: U is declared positive",
    ),
    Pair(
        "3.136", r"\partial L_S/\partial w \circ \operatorname{DReLU}(w, A)", "",
        "4.51", r"\eta\,\partial L/\partial\tilde\alpha\circledast\alpha", "",
        "this book's 4.51′",
    ),
)  # fmt: skip


def parse(line: str) -> tuple[list[str], list[str], str]:
    """Names of the factors, their indices, and the indices of the result."""
    left, _, out = line.partition(" -> ")
    factors = re.findall(r"(\S+):(\w+)", left)
    return [name for name, _ in factors], [indices for _, indices in factors], out


def renamed(line: str) -> str:
    """A line of RBONN in the letters and in the layout of DCP-NAS: the last two indices of each matrix change places."""
    names, indices, out = parse(line)
    turned = [i.translate(LETTERS)[:-2] + i.translate(LETTERS)[-2:][::-1] for i in [*indices, out]]
    return " ".join(f"{NAMES[n]}:{i}" for n, i in zip(names, turned, strict=False)) + f" -> {turned[-1]}"


def evaluate(line: str, tensors: dict[str, Tensor]) -> Tensor:
    """The value of a line, with the tensors of its factors by name."""
    names, indices, out = parse(line)
    return einsum(f"{','.join(indices)}->{out}", *(tensors[name] for name in names))


def markdown() -> str:
    """The two derivations as a Markdown table of parallel columns."""
    rows = ["| RBONN | DCP-NAS | renamed |", "|" + "---|" * 3]
    for p in PAIRS:
        rows.append(f"| ({p.number})<br>${p.tex}$ | [({p.heir})]({link(p.heir)})<br>${p.heir_tex}$ | {p.shows} |")
    return "\n".join(rows)
