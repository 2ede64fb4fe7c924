"""Symbolic proofs of 4.43–4.53 (SymPy): every entry is a symbol, E and M run from 1 to 3, and a line holds as a polynomial.

A proof has two sides. ``left`` is made without the line: by differentiation, or written out as sums. ``right`` is the line. A
wrong line in its place must be refuted; where a line was corrected, the printed one is among them.

At a point a derivative knows of a function its value and its slope alone. So ℓ(z) = Σ δ_{e,m} z_{e,m} stands for every loss,
w_k = Σ J_{k,e,m} α_{e,m} for every response, and w_m = Σ_e s_{e,m} α_{e,m} for every one that obeys 4.46; all are symbols.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field

import sympy
from sympy import Matrix

SIZES = tuple(sorted(itertools.product((1, 2, 3), repeat=2), key=lambda size: size != (2, 3)))  # the one that tells most, first

#: Where no identity of polynomials stands behind a number, and why.
NONE = {
    "4.42": "an optimum",
    "4.52": "an order and a threshold",
}


@functools.cache
class Symbols:
    """α, δ, ∂w/∂α and all else for E edges and M operations, every entry a symbol."""

    def __init__(self, E: int, M: int):
        self.E, self.M, self.edges, self.operations = E, M, range(E), range(M)
        self.alpha, self.delta, self.slope, self.start, self.psi = (_matrix(name, E, M) for name in ("a", "d", "s", "n", "p"))
        self.L, self.g = self.delta.T, _matrix("g", E, 1)
        self.eta1, self.eta2 = sympy.symbols("eta1 eta2")
        self.jacobian = [_matrix(f"J{k}", E, M) for k in self.operations]
        self.w = [sum(self.slope[e, m] * self.alpha[e, m] for e in self.edges) for m in self.operations]

    def by_entry(self, entry: Callable) -> Matrix:
        """The E×M matrix of entry(e, m)."""
        return Matrix(self.E, self.M, entry)

    def ell(self, z: Matrix):
        return sum(self.delta.multiply_elementwise(z))

    def mixture(self, w: list) -> Matrix:
        """α ⊛ w."""
        return self.by_entry(lambda e, m: self.alpha[e, m] * w[m])

    def by_alpha(self, value) -> Matrix:
        """The derivative of a number by every entry of α."""
        return self.by_entry(lambda e, m: sympy.diff(value, self.alpha[e, m]))

    @functools.cached_property
    def coupling(self) -> Matrix:
        """C: dL/dα through w(α) less ∂L/∂α at fixed w, both by differentiation."""
        fixed = list(sympy.symbols(f"w:{self.M}"))
        direct = self.by_alpha(self.ell(self.mixture(fixed))).subs(dict(zip(fixed, self.w, strict=True)))
        return self.by_alpha(self.ell(self.mixture(self.w))) - direct

    @functools.cached_property
    def slices(self) -> list[Matrix]:
        """(∂w/∂α)_m of 4.46, by differentiation."""
        return [self.by_alpha(w) for w in self.w]

    @functools.cached_property
    def bracket(self) -> list:
        """Σ_m Σ_{e'} g̃_{e'} ∂w_m/∂α_{e',m} of 4.49 and 4.50."""
        return [sum(self.L[i, f] * self.slope[f, m] for f in self.edges for m in self.operations) for i in self.operations]

    def traces(self, product: Matrix) -> Matrix | None:
        """Tr[product ∂W/∂α_{e,m}] for every (e, m), W = diag(w) differentiated by one entry; None where the shapes do not fit."""
        if product.shape != (self.M, self.M):
            return None
        return self.by_entry(lambda e, m: (product * sympy.diag(*self.w).diff(self.alpha[e, m])).trace())


def _matrix(name: str, rows: int, columns: int) -> Matrix:
    return Matrix(rows, columns, lambda i, j: sympy.Symbol(f"{name}_{i}{j}"))


@dataclass(frozen=True)
class Proof:
    """says: the line in words. wrong: other lines by name, each of which is refuted for some E and M up to 3."""

    says: str
    left: Callable[[Symbols], Matrix] = field(repr=False)
    right: Callable[[Symbols], Matrix] = field(repr=False)
    wrong: dict[str, Callable[[Symbols], Matrix | None]] = field(repr=False)

    def holds(self, line: Callable[[Symbols], Matrix | None] | None = None) -> bool:
        """Whether a line, else the right one, is the left side for every E and M up to 3."""
        return all(_same(self.left(s := Symbols(E, M)), (line or self.right)(s)) for E, M in SIZES)


def _same(left: Matrix, right: Matrix | None) -> bool:
    if right is None or left.shape != right.shape:
        return False
    return all(sympy.expand(sympy.numer(sympy.together(difference))) == 0 for difference in left - right)


def _dL_dw(s: Symbols, m: int):
    return sum(s.alpha[e, m] * s.delta[e, m] for e in s.edges)


def _direct(s: Symbols, w: list | None = None) -> Matrix:
    """∂L/∂α at fixed w: δ ⊛ w."""
    w = [sum(J.multiply_elementwise(s.alpha)) for J in s.jacobian] if w is None else w
    return s.by_entry(lambda e, m: s.delta[e, m] * w[m])


def _sum(s: Symbols, term: Callable) -> Matrix:
    return s.by_entry(lambda e, m: sum(term(k, e, m) for k in s.operations))


def _by_matrix(s: Symbols, loss: Callable) -> Matrix:
    W = _matrix("W", s.M, s.M)
    return Matrix(s.M, s.M, lambda k, m: sympy.diff(loss(W), W[k, m]))


def _inner(s: Symbols, e: int, f: int):
    return sum(s.alpha[e, i] * s.L[i, f] for i in s.operations)


def _product(s: Symbols, entry: Callable) -> Matrix:
    """The slices of 4.48 below one another: entry(e, m) in column m of slice m, 0 elsewhere."""
    return Matrix.vstack(*(s.by_entry(lambda e, k, m=m: entry(e, m) if k == m else 0) for m in s.operations))


def _softmax_slopes(s: Symbols) -> Matrix:
    """∂w/∂α of one weight that sees row e as p_e = softmax(α_e), with slope s_{e,n} in p_{e,n}; exp(α) is written x."""
    x = s.start

    def entry(e, m):
        total = sum(x[e, :])
        return sum(s.slope[e, n] * x[e, m] * sympy.diff(x[e, n] / total, x[e, m]) for n in s.operations)

    return s.by_entry(entry)


def _update(s: Symbols, psi: Callable) -> Matrix:
    """4.50 with η = η₁η₂."""
    following = s.alpha - s.eta1 * _direct(s, s.w)
    return s.by_entry(lambda e, m: following[e, m] + s.eta1 * s.eta2 * psi(e, m) * s.alpha[e, m])


def _stacked(s: Symbols, of: Callable) -> Matrix:
    shapes = ((s.E, s.M), (s.E, 1), (1, s.M), (1, 1))
    return Matrix([entry for shape in shapes for entry in of(shape)])


def _psi_slope(s: Symbols, shape: tuple[int, int]) -> Matrix:
    psi = _matrix("q", *shape)
    share = s.by_entry(lambda e, m: psi[e if shape[0] > 1 else 0, m if shape[1] > 1 else 0])
    loss = s.ell(s.start + s.eta1 * share.multiply_elementwise(s.alpha))
    return Matrix(*shape, lambda e, m: sympy.diff(loss, psi[e, m]))


def _psi_sum(s: Symbols, shape: tuple[int, int], entry: Callable) -> Matrix:
    full = s.by_entry(entry)
    full = full if shape[0] == s.E else sympy.ones(1, s.E) * full
    return full if shape[1] == s.M else full * sympy.ones(s.M, 1)


def _signs_squared(value, s: Symbols):
    """The square of each entry of ψ, which here are signs, put to 1."""
    return sympy.expand(value).subs({b**2: 1 for b in s.psi})


PROOFS: dict[str, list[Proof]] = {}


def prove(number: str, says: str, left: Callable, right: Callable, **wrong: Callable) -> None:
    PROOFS.setdefault(number, []).append(Proof(says, left, right, {name.replace("_", " "): w for name, w in wrong.items()}))


def score(number: str) -> str:
    """Wrong lines refuted, of those tried, "5/5"; with "fails" before it where a line does not hold."""
    proofs = PROOFS[number]
    refuted = [not proof.holds(line) for proof in proofs for line in proof.wrong.values()]
    return ("" if all(proof.holds() for proof in proofs) else "fails, ") + f"{sum(refuted)}/{len(refuted)}"


prove(
    "4.43",
    "dL/dα = ∂L/∂α + C for any response, C[e, m] = Σ_k ∂L/∂w_k ∂w_k/∂α[e, m]",
    lambda s: s.by_alpha(s.ell(s.mixture([sum(J.multiply_elementwise(s.alpha)) for J in s.jacobian]))),
    lambda s: _direct(s) + _sum(s, lambda k, e, m: _dL_dw(s, k) * s.jacobian[k][e, m]),
    coupling_missing=lambda s: _direct(s),
    direct_part_missing=lambda s: _sum(s, lambda k, e, m: _dL_dw(s, k) * s.jacobian[k][e, m]),
    only_k_is_m=lambda s: _direct(s) + s.by_entry(lambda e, m: _dL_dw(s, m) * s.jacobian[m][e, m]),
    sum_over_m_not_k=lambda s: _direct(s) + _sum(s, lambda k, e, m: _dL_dw(s, k) * s.jacobian[m][e, k]),
    minus=lambda s: _direct(s) - _sum(s, lambda k, e, m: _dL_dw(s, k) * s.jacobian[k][e, m]),
)

prove(
    "4.44",
    "(∂L/∂W)^T = L̃ α in all M² entries, L = ℓ(α W), L̃ = δ^T",
    lambda s: _by_matrix(s, lambda W: s.ell(s.alpha * W)).T,
    lambda s: s.L * s.alpha,
    left_division=lambda s: s.alpha * s.L,
    not_transposed=lambda s: (s.L * s.alpha).T,
    diagonal_alone=lambda s: sympy.diag(*(s.L * s.alpha).diagonal()),
    L_not_transposed=lambda s: s.delta * s.alpha if s.E == s.M else None,
)

prove(
    "4.44",
    "∂L/∂w_m = (L̃ α)_{m,m} for L = ℓ(α ⊛ w), the diagonal of the same",
    lambda s: Matrix([sympy.diff(s.ell(s.mixture(w)), w[m]) for m in s.operations for w in [_matrix("w", s.M, 1)]]),
    lambda s: (s.L * s.alpha).diagonal().T,
    left_division=lambda s: (s.alpha * s.L).diagonal().T,
    all_of_the_product=lambda s: s.L * s.alpha * sympy.ones(s.M, 1),
    α_missing=lambda s: s.L * sympy.ones(s.E, 1),
)

prove(
    "4.44",
    "(∂L/∂w)^T = L̃ α for L = ℓ(α w), L̃ = g̃^T one number per edge",
    lambda s: Matrix(1, s.M, lambda _, m: sympy.diff((s.g.T * s.alpha * (w := _matrix("w", s.M, 1)))[0], w[m])),
    lambda s: s.g.T * s.alpha,
    left_division=lambda s: (s.alpha * s.g).T if s.E == s.M else None,
    a_column=lambda s: (s.g.T * s.alpha).T,
    element_by_element=lambda s: Matrix(1, s.M, lambda _, m: s.g[0] * s.alpha[0, m]),
)

prove(
    "4.45",
    "C[e, m] = Tr[L̃ α ∂W/∂α[e, m]], W = diag(w)",
    lambda s: s.coupling,
    lambda s: s.traces(s.L * s.alpha),
    as_printed=lambda s: s.traces(s.alpha * s.L),
    left_side_as_printed=lambda s: s.by_entry(lambda e, m: _dL_dw(s, m)),
    L_not_transposed=lambda s: s.traces(s.delta * s.alpha) if s.E == s.M else None,
    alpha_transposed=lambda s: s.traces(s.L * s.alpha.T) if s.E == s.M else None,
)

prove(
    "4.45",
    "in the layout of 4.20 (α of M×E, L̃ of E×M) the printed order: C = Tr[α L̃ ∂W/∂α]",
    lambda s: s.coupling,
    lambda s: s.traces(s.alpha.T * s.L.T),
    order_exchanged=lambda s: s.traces(s.L.T * s.alpha.T),
)

prove(
    "4.46",
    "slice m has ∂w_m/∂α[:, m] in column m and 0 elsewhere, if w_m answers to that column alone",
    lambda s: Matrix.vstack(*s.slices),
    lambda s: Matrix.vstack(*(s.by_entry(lambda e, k, m=m: s.slope[e, m] * int(k == m)) for m in s.operations)),
    next_column=lambda s: Matrix.vstack(*(s.by_entry(lambda e, k, m=m: s.slope[e, m] * int(k == m - 1)) for m in s.operations)),
    not_0_elsewhere=lambda s: Matrix.vstack(*(s.by_entry(lambda e, k: s.slope[e, k]) for _ in s.operations)),
    column_of_k=lambda s: Matrix.vstack(*(s.by_entry(lambda e, k, m=m: s.slope[e, 0] * int(k == m)) for m in s.operations)),
)

prove(
    "4.46",
    "through softmax(α) the slopes of any weight have row sums 0, so that with 4.46 all of them are 0",
    lambda s: _softmax_slopes(s) * sympy.ones(s.M, 1),
    lambda s: sympy.zeros(s.E, 1),
    as_without_softmax=lambda s: s.slope * sympy.ones(s.M, 1),
    one_entry_of_the_row=lambda s: _softmax_slopes(s)[:, 0],
    all_but_one_entry=lambda s: _softmax_slopes(s)[:, 1:] * sympy.ones(s.M - 1, 1) if s.M > 1 else sympy.zeros(s.E, 1),
)

prove(
    "4.47",
    "entry (e, e') of α L̃ is α_e · g̃_{e'}",
    lambda s: Matrix(s.E, s.E, lambda e, f: sum(s.alpha[e, i] * s.L[i, f] for i in s.operations)),
    lambda s: s.alpha * s.L,
    e_and_e_exchanged=lambda s: (s.alpha * s.L).T,
    order_exchanged=lambda s: s.L * s.alpha,
    diagonal_alone=lambda s: sympy.diag(*(s.alpha * s.L).diagonal()),
)

prove(
    "4.48",
    "α L̃ (∂w/∂α)_m has α_e Σ_{e'} g̃_{e'} ∂w_m/∂α[e', m] in column m and 0 elsewhere",
    lambda s: Matrix.vstack(*(s.alpha * s.L * slice_m for slice_m in s.slices)),
    lambda s: _product(s, lambda e, m: sum(_inner(s, e, f) * s.slope[f, m] for f in s.edges)),
    e_and_e_exchanged=lambda s: _product(s, lambda e, m: sum(_inner(s, f, e) * s.slope[f, m] for f in s.edges)),
    no_sum_over_e=lambda s: _product(s, lambda e, m: _inner(s, e, e) * s.slope[e, m]),
    free_index_of_w=lambda s: _product(s, lambda e, m: sum(_inner(s, f, f) * s.slope[e, m] for f in s.edges)),
    order_reversed=lambda s: Matrix.vstack(*(slice_m * s.L * s.alpha for slice_m in s.slices)),
)

prove(
    "4.49",
    "the trace of 4.48 over its last two axes is α_e Σ_m Σ_{e'} g̃_{e'} ∂w_m/∂α[e', m]",
    lambda s: Matrix(s.E, 1, lambda e, _: sum((s.alpha * s.L * s.slices[m])[e, m] for m in s.operations)),
    lambda s: s.alpha * Matrix(s.bracket),
    the_coupling=lambda s: s.coupling * sympy.ones(s.M, 1),
    e_and_e_exchanged=lambda s: Matrix(
        s.E, 1, lambda e, _: sum(_inner(s, f, e) * s.slope[f, m] for f in s.edges for m in s.operations)
    ),
    one_operation_m=lambda s: Matrix(
        s.E, 1, lambda e, _: sum(s.alpha[e, m] * s.L[m, f] * s.slope[f, m] for f in s.edges for m in s.operations)
    ),
)

prove(
    "4.49",
    "the coupling is C[e, m] = (Σ_{e'} α[e', m] L̃[m, e']) ∂w_m/∂α[e, m]",
    lambda s: s.coupling,
    lambda s: s.by_entry(lambda e, m: sum(s.alpha[f, m] * s.L[m, f] for f in s.edges) * s.slope[e, m]),
    as_printed=lambda s: s.by_entry(lambda e, m: (s.alpha * Matrix(s.bracket))[e]),
    free_index_as_printed=lambda s: s.by_entry(
        lambda e, m: s.alpha[e, m] * sum(s.L[m, f] * s.slope[f, m] for f in s.edges)
    ),
    no_sum_over_e=lambda s: s.by_entry(lambda e, m: s.alpha[e, m] * s.L[m, e] * s.slope[e, m]),
    as_the_ancestor=lambda s: s.by_entry(lambda e, m: s.alpha[e, m] * s.L[m, e] * sum(s.slope[f, m] for f in s.edges)),
)

prove(
    "4.50",
    "with ψ = −C/α the update is the step of 4.43, α − η₁(∂L/∂α + η₂ C), η = η₁η₂",
    lambda s: s.alpha - s.eta1 * (_direct(s, s.w) + s.eta2 * s.coupling),
    lambda s: _update(s, lambda e, m: -s.coupling[e, m] / s.alpha[e, m]),
    as_printed=lambda s: _update(s, lambda e, m: -s.bracket[m]),
    element_by_element=lambda s: _update(s, lambda e, m: -sum(s.L[m, f] * s.slope[f, m] for f in s.edges)),
    α_missing=lambda s: _update(s, lambda e, m: -s.coupling[e, m]),
    plus=lambda s: _update(s, lambda e, m: s.coupling[e, m] / s.alpha[e, m]),
)

prove(
    "4.50",
    "summed over the operations, the printed correction is the trace of 4.49",
    lambda s: Matrix(s.E, 1, lambda e, _: sum((s.alpha * s.L * s.slices[m])[e, m] for m in s.operations)),
    lambda s: s.by_entry(lambda e, m: s.alpha[e, m] * s.bracket[m]) * sympy.ones(s.M, 1),
    summed_over_the_edges=lambda s: (sympy.ones(1, s.E) * s.by_entry(lambda e, m: s.alpha[e, m] * s.bracket[m])).T,
    α_missing=lambda s: s.by_entry(lambda e, m: s.bracket[m]) * sympy.ones(s.M, 1),
)

prove(
    "4.51",
    "∂L/∂ψ̃ = η ∂L/∂α̃ ⊛ α, for one ψ̃ an entry, an edge, an operation, and for one number; |·| is no polynomial",
    lambda s: _stacked(s, lambda shape: _psi_slope(s, shape)),
    lambda s: _stacked(s, lambda shape: _psi_sum(s, shape, lambda e, m: s.eta1 * s.delta[e, m] * s.alpha[e, m])),
    α_missing=lambda s: _stacked(s, lambda shape: _psi_sum(s, shape, lambda e, m: s.eta1 * s.delta[e, m])),
    η_missing=lambda s: _stacked(s, lambda shape: _psi_sum(s, shape, lambda e, m: s.delta[e, m] * s.alpha[e, m])),
    next_α=lambda s: _stacked(s, lambda shape: _psi_sum(s, shape, lambda e, m: s.eta1 * s.delta[e, m] * s.start[e, m])),
    minus=lambda s: _stacked(s, lambda shape: _psi_sum(s, shape, lambda e, m: -s.eta1 * s.delta[e, m] * s.alpha[e, m])),
)

prove(
    "4.53",
    "‖β ∘ sign(ŵ)‖² = n Σ_c β_c² for n weights a channel, a sign having the square 1",
    lambda s: Matrix([_signs_squared(sum((s.g[c] * s.psi[c, j]) ** 2 for c in s.edges for j in s.operations), s)]),
    lambda s: Matrix([s.M * sum(s.g[c] ** 2 for c in s.edges)]),
    n_missing=lambda s: Matrix([sum(s.g[c] ** 2 for c in s.edges)]),
    β_not_squared=lambda s: Matrix([s.M * sum(s.g)]),
    square_of_the_sum=lambda s: Matrix([s.M * sum(s.g) ** 2]),
)
