"""The reader's bench: `check("4.49", fn)` holds a reader's function against the package on random problems.

`signatures()` lists what can be checked and how the function is called; `mutants("4.49")` lists wrong versions that the
check is known to catch. A bare number is the line as printed, "4.49 derived" the corrected one; a third word names a part.
The bare number may also be written as one, 4.49.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, einsum

from ..derivation import responses, trace
from ..method import backtracking, objectives, tangent
from ..network import binarize
from ..report.compare import compare as compare

#: Sizes of the three random problems: no two letters agree, and E and M change places.
SIZES = (
    {"E": 3, "M": 4, "N": 6, "C": 2, "K": 7},
    {"E": 5, "M": 2, "N": 3, "C": 4, "K": 6},
    {"E": 14, "M": 8, "N": 5, "C": 3, "K": 9},
)
TOLERANCE = 1e-9


class CheckFailed(AssertionError):
    """A function does not compute the equation. index, yours, expected: the first wrong entry; None where there is none."""

    def __init__(self, equation: str, message: str, index: tuple[int, ...] | None = None, yours=None, expected=None):
        super().__init__(f"{equation}: {message}")
        self.equation, self.index, self.yours, self.expected = equation, index, yours, expected


@dataclass(frozen=True)
class Exercise:
    """What a check knows: how fn is called, what it shall return, the package's own answer, and wrong ones."""

    signature: str
    what: str
    reference: Callable
    wrong: dict[str, Callable]
    prepare: Callable[[dict], dict] = dict

    def problem(self, number: int) -> dict:
        """Arguments by name of one random problem: float64 tensors, standard normal; numbers between 0.1 and 0.9."""
        generator = torch.Generator().manual_seed(number)
        arguments = {}
        for name, shape in re.findall(r"(\w+)(?: (\([^)]*\)))?(?:,|$)", self.signature.partition(" -> ")[0]):
            if shape:
                size = [SIZES[number][letter] for letter in re.findall(r"\w", shape)]
                arguments[name] = torch.randn(size, generator=generator, dtype=torch.float64)
            else:
                arguments[name] = 0.1 + 0.8 * torch.rand((), generator=generator).item()
        return self.prepare(arguments)


def check(equation: str | float, fn: Callable) -> str:
    """Check a reader's function on three random problems (float64, distinct sizes, E > M and E < M).

    fn is called with positional arguments as below and must return a new tensor of exactly the stated shape, in float64,
    leaving its arguments as they are. Prints and returns a line that says what was checked, or raises CheckFailed that
    names the equation and what is wrong: first the kind of result, then its shape, then its values.
    ValueError for an equation that is not listed.

{signatures}
    """
    equation, exercise = _exercise(equation)
    if not callable(fn):
        raise TypeError(f"fn: expected a function, got {type(fn).__name__}")
    for number, sizes in enumerate(SIZES):
        arguments, given = exercise.problem(number), exercise.problem(number)
        expected = exercise.reference(*arguments.values())
        where = ", ".join(f"{letter} = {sizes[letter]}" for letter in sizes if re.search(rf"\b{letter}\b", exercise.signature))
        try:
            yours = fn(*given.values())
        except Exception as problem:
            raise CheckFailed(equation, f"your function raised {type(problem).__name__}: {problem} ({where})") from problem
        for name, value in arguments.items():
            if isinstance(value, Tensor) and not torch.equal(value, given[name]):
                raise CheckFailed(equation, f"your function changes its argument {name}")
        shape, kind = tuple(expected.shape), type(yours).__name__
        if not isinstance(yours, Tensor):
            raise CheckFailed(equation, f"expected a tensor of shape {shape}, your function returned {kind}")
        if tuple(yours.shape) != shape:
            raise CheckFailed(equation, f"wrong shape: yours {tuple(yours.shape)}, expected {shape} ({where})")
        if yours.dtype != expected.dtype:
            raise CheckFailed(equation, f"wrong type of number: yours {yours.dtype}, expected {expected.dtype}")
        if (yours.device, yours.layout) != (expected.device, expected.layout):
            raise CheckFailed(equation, f"expected a tensor in main memory, yours is {yours.layout} on {yours.device}")
        right = torch.isclose(yours, expected, rtol=TOLERANCE, atol=TOLERANCE * expected.abs().max().item())
        if not right.all():
            index = tuple((~right).nonzero()[0].tolist())
            mine, theirs = yours[index].item(), expected[index].item()
            at = f" at {list(index)}" if index else ""
            raise CheckFailed(
                equation, f"wrong value{at}: yours {mine:.6g}, expected {theirs:.6g} ({where})", index, mine, theirs
            )
    message = f"{equation} passes: {exercise.what}; {len(SIZES)} random problems, shapes and values to {TOLERANCE:.0e}"
    print(message)
    return message


def mutants(equation: str | float) -> dict[str, Callable]:
    """Wrong versions of an equation by name: each has the signature of the right one, and its check catches every one."""
    _, exercise = _exercise(equation)
    return {
        "zero": lambda *a: exercise.reference(*a) * 0,
        "negated": lambda *a: -exercise.reference(*a),
        "left to broadcasting": lambda *a: exercise.reference(*a).flatten()[:1],
        "a plain number": lambda *a: exercise.reference(*a).sum().item(),
        **exercise.wrong,
    }


def signatures() -> str:
    """One line for every equation that can be checked: name, call, what it is."""
    return "\n".join(f"{name:16} fn({e.signature.replace(' -> ', ') -> ')}: {e.what}" for name, e in EXERCISES.items())


def _exercise(equation: str | float) -> tuple[str, Exercise]:
    """Its name and itself; the number 4.5 is the name "4.50"."""
    name = equation
    if isinstance(equation, float) and float(f"{equation:.2f}") == equation:
        name = f"{equation:.2f}"
    if isinstance(name, str) and name in EXERCISES:
        return name, EXERCISES[name]
    number = name.split()[:1] if isinstance(name, str) else []
    close = [listed for listed in EXERCISES if listed.split()[:1] == number]
    got = repr(equation) if isinstance(equation, str | float | int) else type(equation).__name__
    raise ValueError(f"equation: expected one of {', '.join(close or EXERCISES)}, got {got}")


# ---- the exercises -------------------------------------------------------------------------------------------------


def _with_zero(arguments: dict) -> dict:
    """A 0 in the input and in the weights, where sign is +1, and scales that are not negative."""
    for name in ("x", "weight"):
        if name in arguments:
            arguments[name][0, 0] = 0
    arguments["beta"] = arguments["beta"].abs()
    return arguments


def _at_the_ends(arguments: dict) -> dict:
    arguments["x"][:5] = torch.tensor([-1.0, 1.0, 0.0, -1.5, 1.5])
    return arguments


def _distributions(arguments: dict) -> dict:
    return {name: value.softmax(1) if name in ("target", "p") else value for name, value in arguments.items()}


def _symmetric(arguments: dict) -> dict:
    root = arguments["hessian"]
    return arguments | {"hessian": root @ root.T + torch.eye(len(root), dtype=root.dtype)}


def _in_the_rows_of_alpha(arguments: dict) -> dict:
    return arguments | {"dL_dw": arguments["dL_dw"] @ torch.linalg.pinv(arguments["alpha"]) @ arguments["alpha"]}


def _with_ranks(arguments: dict) -> dict:
    norms = arguments["norms"].square()
    return arguments | {"norms": norms, "tau": len(norms) // 2}


def _node(alpha: Tensor, outputs: Tensor) -> Tensor:
    return einsum("em,emk->ek", alpha.softmax(1), outputs)


def _loss_gradient(gradient: Tensor, direction: Tensor, hessian: Tensor, lam: float) -> Tensor:
    return -gradient + 2 * lam * hessian @ (gradient - direction)


def _window(x: Tensor) -> Tensor:
    return torch.autograd.functional.vjp(binarize.sign, x, torch.ones_like(x))[1]


def _derived_trace(alpha: Tensor, factor: Tensor, dw: Tensor) -> Tensor:
    return trace.coupling(torch.diag(factor @ alpha), trace.response_slices(dw))


def _chosen(alpha_next: Tensor, alpha: Tensor, psi: Tensor, eta: float, norms: Tensor, tau: int) -> Tensor:
    return backtracking.backtrack(alpha_next, alpha, psi, eta, backtracking.ranking(norms) > tau)


EXERCISES: dict[str, Exercise] = {
    "4.21": Exercise(
        "logits (N, C), target (N, C) -> ()",
        "L_NAS of softmax(logits) against a distribution over C classes, mean over N images",
        objectives.nas_loss,
        {
            "roles exchanged": lambda s, t: -(s.softmax(1) * t.log()).sum(1).mean(),
            "sum over the images": lambda s, t: -(t * s.log_softmax(1)).sum(),
            "mean over the classes": lambda s, t: -(t * s.log_softmax(1)).mean(),
            "softmax over the images": lambda s, t: -(t * s.log_softmax(0)).sum(1).mean(),
        },
        _distributions,
    ),
    "4.22": Exercise(
        "x (N, K), weight (C, K), beta (C) -> (N, C)",
        "1-bit product β ∘ (sign(x) ⊙ sign(w)), sign(0) = +1",
        lambda x, w, b: b * (binarize.sign(x) @ binarize.sign(w).T),
        {
            "scale missing": lambda x, w, b: binarize.sign(x) @ binarize.sign(w).T,
            "sign(0) = 0": lambda x, w, b: b * (x.sign() @ w.sign().T),
            "sign(0) = -1": lambda x, w, b: b * ((2.0 * (x > 0) - 1) @ (2.0 * (w > 0).T - 1)),
            "input not binarized": lambda x, w, b: b * (x @ binarize.sign(w).T),
            "weight not binarized": lambda x, w, b: b * (binarize.sign(x) @ w.T),
            "mean instead of sum": lambda x, w, b: b * (binarize.sign(x) @ binarize.sign(w).T) / x.shape[1],
            "bits counted, not signs": lambda x, w, b: b * ((x >= 0).double() @ (w >= 0).double().T),
        },
        _with_zero,
    ),
    "4.23": Exercise(
        "weight (C, K), beta (C) -> ()",
        "reconstruction error ‖w − β ∘ sign(w)‖²",
        binarize.reconstruction_error,
        {
            "square missing": lambda w, b: binarize.reconstruction_error(w, b).sqrt(),
            "scale missing": lambda w, b: binarize.reconstruction_error(w, torch.ones_like(b)),
            "one scale for all channels": lambda w, b: binarize.reconstruction_error(w, b.mean().expand_as(b)),
            "mean instead of sum": lambda w, b: binarize.reconstruction_error(w, b) / w.numel(),
            "sign missing": lambda w, b: (w - b[:, None]).square().sum(),
        },
        _with_zero,
    ),
    "4.28": Exercise(
        "alpha (E, M), outputs (E, M, K) -> (E, K)",
        "each edge's mixture Σ_m softmax_m(α) o_m",
        _node,
        {
            "softmax missing": lambda a, o: einsum("em,emk->ek", a, o),
            "softmax over the edges": lambda a, o: einsum("em,emk->ek", a.softmax(0), o),
            "softmax over both": lambda a, o: einsum("em,emk->ek", a.flatten().softmax(0).view_as(a), o),
            "mean over the operations": lambda a, o: o.mean(1),
        },
    ),
    "4.29 derived": Exercise(
        "target (N, C), p (N, C), slopes (N, C, K) -> (K)",
        "tangent direction Σ_n (p_n(X)/p_n) ∂p_n/∂α, mean over N images; slopes[s, n] = ∂p_n/∂α of image s",
        lambda t, p, s: einsum("sn,snk->k", t / p, s) / len(p),
        {
            "as printed": lambda t, p, s: s.sum(1).mean(0),
            "1/p missing": lambda t, p, s: einsum("sn,snk->k", t, s) / len(p),
            "ratio upside down": lambda t, p, s: einsum("sn,snk->k", p / t, s) / len(p),
            "sum over the images": lambda t, p, s: einsum("sn,snk->k", t / p, s),
            "p(X) missing": lambda t, p, s: einsum("sn,snk->k", 1 / p, s) / len(p),
        },
        _distributions,
    ),
    "4.30": Exercise(
        "child_logits (N, C), parent_logits (N, C) -> ()",
        "gain G = Σ_n p_n log(p̂_n/p_n), mean over N images; p of the Parent, p̂ of the Child",
        objectives.kl_gain,
        {
            "roles exchanged": lambda c, p: objectives.kl_gain(p, c),
            "cross-entropy": lambda c, p: (p.softmax(1) * c.log_softmax(1)).sum(1).mean(),
            "sum over the images": lambda c, p: objectives.kl_gain(c, p) * len(c),
            "mean over the classes": lambda c, p: objectives.kl_gain(c, p) / c.shape[1],
        },
    ),
    "4.31": Exercise(
        "child (E, M), parent (E, M) -> ()",
        "tangent distance ‖∂f̃/∂α − ∂G/∂α̂‖² (F-norm)",
        lambda c, p: tangent.distance([c], [p]),
        {
            "square missing": lambda c, p: (c - p).norm(),
            "L1": lambda c, p: (c - p).abs().sum(),
            "mean instead of sum": lambda c, p: (c - p).square().mean(),
            "difference of the norms": lambda c, p: (c.norm() - p.norm()).square(),
            "plus": lambda c, p: (c + p).square().sum(),
        },
    ),
    "4.33": Exercise(
        "gradient (K), direction (K), hessian (K, K), lam -> (K)",
        "∇(−G + λ D) with gradient = ∂G/∂α̂, direction = ∂f̃/∂α, hessian = H_G",
        _loss_gradient,
        {
            "factor 2 missing": lambda g, f, H, lam: -g + lam * H @ (g - f),
            "λ missing": lambda g, f, H, lam: -g + 2 * H @ (g - f),
            "H_G missing": lambda g, f, H, lam: -g + 2 * lam * (g - f),
            "difference the other way": lambda g, f, H, lam: -g + 2 * lam * H @ (f - g),
            "gain's sign": lambda g, f, H, lam: g + 2 * lam * H @ (g - f),
            "gain missing": lambda g, f, H, lam: 2 * lam * H @ (g - f),
            "rank one": lambda g, f, H, lam: -g - 2 * lam * g * (g @ (g - f)),
        },
        _symmetric,
    ),
    "4.35": Exercise(
        "x (K) -> (K)",
        "straight-through window 1_{|x| ≤ 1}, ends included",
        _window,
        {
            "ends left out": lambda x: (x.abs() < 1).double(),
            "no window": lambda x: torch.ones_like(x),
            "upper end only": lambda x: (x <= 1).double(),
            "0 left out": lambda x: ((x.abs() <= 1) & (x != 0)).double(),
            "a window of ½": lambda x: (x.abs() <= 0.5).double(),
            "true and false": lambda x: x.abs() <= 1,
            "triangle": lambda x: (2 - 2 * x.abs()).clamp(min=0),
        },
        _at_the_ends,
    ),
    "4.36": Exercise(
        "p (N, C), scores (N, C, K) -> (K, K)",
        "Fisher information E[∂ log p ∂ log pᵀ], classes weighted by p, mean over N images; scores[s, n] = ∂ log p_n",
        lambda p, s: einsum("sn,sni,snj->ij", p, s, s) / len(p),
        {
            "classes not weighted": lambda p, s: einsum("sni,snj->ij", s, s) / len(p),
            "1/p dropped, as in 4.41": lambda p, s: einsum("sn,sni,snj->ij", p**3, s, s) / len(p),
            "sum over the images": lambda p, s: einsum("sn,sni,snj->ij", p, s, s),
            "outer product of the mean": lambda p, s: einsum("sn,sni,tm,tmj->ij", p, s, p, s) / len(p) ** 2,
            "diagonal only": lambda p, s: torch.diag(einsum("sn,sni,sni->i", p, s, s) / len(p)),
        },
        _distributions,
    ),
    "4.43": Exercise(
        "dL_dw (M), jacobian (M, E, M) -> (E, M)",
        "coupling C[e, m] = Σ_k ∂L/∂w_k ∂w_k/∂α[e, m], with jacobian[k, e, m] = ∂w_k/∂α[e, m]",
        trace.coupling,
        {
            "transposed": lambda g, J: trace.coupling(g, J).T,
            "sum over m, not k": lambda g, J: einsum("m,kem->ek", g, J),
            "only k = m": lambda g, J: einsum("m,mem->em", g, J),
            "∂L/∂w missing": lambda g, J: J.sum(0),
            "∂L/∂w outside the sum": lambda g, J: g * J.sum(0),
            "summed over the edges": lambda g, J: trace.coupling(g, J).sum(0).expand(J.shape[1:]),
        },
    ),
    "4.43 step": Exercise(
        "alpha (E, M), dL_dalpha (E, M), coupling (E, M), eta1, eta2 -> (E, M)",
        "the step α − η₁ (∂L/∂α + η₂ C)",
        lambda a, d, C, n1, n2: a - n1 * (d + n2 * C),
        {
            "coupling missing": lambda a, d, C, n1, n2: a - n1 * d,
            "direct part missing": lambda a, d, C, n1, n2: a - n1 * n2 * C,
            "coupling's sign": lambda a, d, C, n1, n2: a - n1 * (d - n2 * C),
            "η₁ on the direct part only": lambda a, d, C, n1, n2: a - n1 * d - n2 * C,
            "η₂ missing": lambda a, d, C, n1, n2: a - n1 * (d + C),
            "η₁ and η₂ exchanged": lambda a, d, C, n1, n2: a - n2 * (d + n1 * C),
            "ascent": lambda a, d, C, n1, n2: a + n1 * (d + n2 * C),
        },
    ),
    "4.43 implicit": Exercise(
        "hessian (M, M), mixed (M, E, M) -> (M, E, M)",
        "∂w*/∂α = −(∂²L/∂w²)⁻¹ ∂²L/∂w∂α, mixed[k, e, m] = ∂²L/∂w_k∂α[e, m]",
        lambda H, B: -einsum("kj,jem->kem", torch.linalg.inv(H), B),
        {
            "Hessian not inverted": lambda H, B: -einsum("kj,jem->kem", H, B),
            "diagonal only": lambda H, B: -B / torch.diag(H)[:, None, None],
            "inverse on the last axis": lambda H, B: -einsum("mj,kej->kem", torch.linalg.inv(H), B),
            "Hessian missing": lambda H, B: -B,
            "inverse element by element": lambda H, B: -einsum("kj,jem->kem", 1 / H, B),
        },
        _symmetric,
    ),
    "4.44 derived": Exercise(
        "delta (E, M) -> (M, E)",
        "L̃ of the mixture reading, delta = ∂ℓ/∂(α ⊛ w): column e is g̃_e",
        trace.loss_factor,
        {
            "not transposed": lambda d: d.clone(),
            "edges in reverse": lambda d: d.flip(0).T,
            "reshaped, not transposed": lambda d: d.reshape(d.shape[::-1]),
            "normalised columns": lambda d: (d / d.norm(dim=1, keepdim=True)).T,
        },
    ),
    "4.44 bilinear": Exercise(
        "dL_dw (M), alpha (E, M) -> (1, E)",
        "L̃ of the bilinear reading: the shortest row with L̃ α = (∂L/∂w)^T",
        trace.right_division,
        {
            "a vector": lambda g, a: trace.right_division(g, a)[0],
            "a column": lambda g, a: trace.right_division(g, a).T,
            "multiplied, not divided": lambda g, a: (a @ g)[None],
            "divided element by element": lambda g, a: (g / a).mean(1)[None],
            "sign of the smallest": lambda g, a: trace.right_division(g, a).abs(),
        },
        _in_the_rows_of_alpha,
    ),
    "4.45 derived": Exercise(
        "alpha (E, M), factor (M, E), jacobian (M, E, M) -> (E, M)",
        "C[e, m] = Tr[L̃ α diag ∂w/∂α[e, m]]",
        lambda a, L, J: trace.coupling(torch.diag(L @ a), J),
        {
            "transposed": lambda a, L, J: trace.coupling(torch.diag(L @ a), J).T,
            "α L̃, as printed": lambda a, L, J: einsum("ei,ie,kem->em", a, L, J),
            "all of L̃ α, not its diagonal": lambda a, L, J: trace.coupling((L @ a).sum(0), J),
            "only k = m": lambda a, L, J: einsum("m,mem->em", torch.diag(L @ a), J),
            "α missing": lambda a, L, J: trace.coupling(L.sum(1), J),
            "L̃ missing": lambda a, L, J: trace.coupling(a.sum(0), J),
        },
    ),
    "4.46": Exercise(
        "dw (E, M) -> (M, E, M)",
        "(∂w/∂α)_m for every m: column m is dw[:, m], 0 elsewhere",
        trace.response_slices,
        {
            "not 0 elsewhere": lambda dw: dw.expand(dw.shape[1], *dw.shape).clone(),
            "slices last": lambda dw: trace.response_slices(dw).movedim(0, 2),
            "next column": lambda dw: trace.response_slices(dw).roll(1, 2),
            "sum over m in column m": lambda dw: trace.response_slices(dw.sum(1, keepdim=True).expand_as(dw)),
            "edges in reverse": lambda dw: trace.response_slices(dw.flip(0)),
        },
    ),
    "4.46 defect": Exercise(
        "jacobian (M, E, M) -> ()",
        "share of ‖∂w/∂α‖² where w_k answers to a column other than k",
        lambda J: torch.tensor(responses.independence_defect(J), dtype=J.dtype),
        {
            "share inside": lambda J: 1 - torch.tensor(responses.independence_defect(J), dtype=J.dtype),
            "not squared": lambda J: 1 - einsum("mem->em", J).abs().sum() / J.abs().sum(),
            "share of the norms": lambda J: 1 - einsum("mem->em", J).norm() / J.norm(),
            "not a share": lambda J: J.square().sum() - einsum("mem->em", J).square().sum(),
        },
    ),
    "4.47": Exercise(
        "alpha (E, M), factor (M, E) -> (E, E)",
        "α L̃: entry (e, e') is α_e · g̃_e'",
        trace.alpha_factor,
        {
            "e and e' exchanged": lambda a, L: (a @ L).T,
            "L̃ α": lambda a, L: L @ a,
            "α missing": lambda a, L: L.sum(0).expand(len(a), -1).clone(),
            "L̃ missing": lambda a, L: a.sum(1, keepdim=True).expand(-1, len(a)).clone(),
            "diagonal only": lambda a, L: torch.diag(torch.diag(a @ L)),
            "element by element": lambda a, L: a * L.T,
        },
    ),
    "4.48": Exercise(
        "alpha (E, M), factor (M, E), dw (E, M) -> (E, M, M)",
        "α L̃ ∂w/∂α: slice [:, :, m] is α L̃ (∂w/∂α)_m",
        trace.trace_tensor,
        {
            "e and e' exchanged": lambda a, L, dw: einsum("fi,ie,mfk->ekm", a, L, trace.response_slices(dw)),
            "not 0 elsewhere": lambda a, L, dw: einsum("ei,if,fm->em", a, L, dw).unsqueeze(1).repeat(1, a.shape[1], 1),
            "α missing": lambda a, L, dw: einsum("if,mfk->km", L, trace.response_slices(dw)).repeat(len(a), 1, 1),
            "L̃ missing": lambda a, L, dw: einsum("ei,mfk->ekm", a, trace.response_slices(dw)),
            "no sum over e'": lambda a, L, dw: einsum("ei,ie,mek->ekm", a, L, trace.response_slices(dw)),
            "diagonal only": lambda a, L, dw: einsum("emm->em", trace.trace_tensor(a, L, dw)),
        },
    ),
    "4.49": Exercise(
        "alpha (E, M), factor (M, E), dw (E, M) -> (E)",
        "as printed: α_e Σ_m Σ_e' g̃_e' ∂w_m/∂α[e', m]",
        trace.trace_components,
        {
            "e and e' exchanged": lambda a, L, dw: einsum("fi,ie,em->e", a, L, dw),
            "no sum over e'": lambda a, L, dw: einsum("ei,ie,em->e", a, L, dw),
            "α summed over its edges": lambda a, L, dw: einsum("ei,if,fm->f", a, L, dw),
            "α, g̃ and w share m": lambda a, L, dw: einsum("em,mf,fm->e", a, L, dw),
            "α missing": lambda a, L, dw: einsum("if,em->e", L, dw),
            "∂w/∂α missing": lambda a, L, dw: (a @ L).sum(1),
            "mean over m": lambda a, L, dw: trace.trace_components(a, L, dw) / a.shape[1],
            "kept per operation": lambda a, L, dw: a * einsum("if,fm->i", L, dw),
            "the coupling per edge": lambda a, L, dw: _derived_trace(a, L, dw).sum(1),
        },
    ),
    "4.49 derived": Exercise(
        "alpha (E, M), factor (M, E), dw (E, M) -> (E, M)",
        "the coupling C[e, m] = (Σ_e' α[e', m] L̃[m, e']) ∂w_m/∂α[e, m]",
        _derived_trace,
        {
            "transposed": lambda a, L, dw: _derived_trace(a, L, dw).T,
            "as printed, in every column": lambda a, L, dw: trace.trace_components(a, L, dw)[:, None] * torch.ones_like(a),
            "the free index as printed": lambda a, L, dw: a * L.T * dw.sum(0),
            "no sum over e'": lambda a, L, dw: a * L.T * dw,
            "α missing": lambda a, L, dw: L.sum(1) * dw,
            "L̃ missing": lambda a, L, dw: a.sum(0) * dw,
            "∂w/∂α missing": lambda a, L, dw: torch.diag(L @ a).repeat(len(a), 1),
            "summed over m": lambda a, L, dw: torch.diag(L @ a).sum() * dw,
        },
    ),
    "4.50": Exercise(
        "factor (M, E), dw (E, M) -> (E, M)",
        "ψ as printed: −Σ_m Σ_e' g̃_e' ∂w_m/∂α[e', m] in every row",
        trace.psi_as_printed,
        {
            "transposed": lambda L, dw: trace.psi_as_printed(L, dw).T,
            "one row": lambda L, dw: trace.psi_as_printed(L, dw)[:1],
            "no sum over m": lambda L, dw: -einsum("me,em->m", L, dw).repeat(len(dw), 1),
            "no sum over e'": lambda L, dw: -(L.T * dw.sum(1, keepdim=True)),
            "e' summed apart": lambda L, dw: -(L.sum(1) * dw.sum()).repeat(len(dw), 1),
            "components of g̃ summed": lambda L, dw: -einsum("if,fm->", L, dw).expand(dw.shape).clone(),
            "∂w/∂α missing": lambda L, dw: -L.sum(1).repeat(len(dw), 1),
            "L̃ missing": lambda L, dw: -dw.sum(0).repeat(len(dw), 1),
        },
    ),
    "4.50 derived": Exercise(
        "alpha (E, M), coupling (E, M) -> (E, M)",
        "ψ = −C / α",
        trace.psi_as_derived,
        {
            "transposed": lambda a, C: trace.psi_as_derived(a, C).T,
            "multiplied, not divided": lambda a, C: -C * a,
            "upside down": lambda a, C: -a / C,
            "magnitude": lambda a, C: (C / a).abs(),
            "the best per edge": lambda a, C: (-(C * a).sum(1, keepdim=True) / (a * a).sum(1, keepdim=True)).expand_as(a),
            "α missing": lambda a, C: -C,
        },
    ),
    "4.50 update": Exercise(
        "alpha_next (E, M), alpha (E, M), psi (E, M), eta -> (E, M)",
        "α^{t+1} + η ψ ⊛ α^t",
        trace.update,
        {
            "transposed": lambda n, a, p, eta: trace.update(n, a, p, eta).T,
            "η missing": lambda n, a, p, eta: n + p * a,
            "α missing": lambda n, a, p, eta: n + eta * p,
            "ψ missing": lambda n, a, p, eta: n + eta * a,
            "α^{t+1} in the product": lambda n, a, p, eta: n + eta * p * n,
            "starts from α^t": lambda n, a, p, eta: a + eta * p * a,
            "minus": lambda n, a, p, eta: n - eta * p * a,
            "correction alone": lambda n, a, p, eta: eta * p * a,
            "inner product for ⊛": lambda n, a, p, eta: n + eta * (p * a).sum(1, keepdim=True),
        },
    ),
    "4.50 per edge": Exercise(
        "alpha (E, M), coupling (E, M) -> (E, 1)",
        "the best ψ with one number per edge: least squares of C ≈ −ψ ⊛ α",
        lambda a, C: -(C * a).sum(1, keepdim=True) / (a * a).sum(1, keepdim=True),
        {
            "per operation": lambda a, C: -(C * a).sum(0, keepdim=True) / (a * a).sum(0, keepdim=True),
            "mean of the quotients": lambda a, C: -(C / a).mean(1, keepdim=True),
            "quotient of the means": lambda a, C: -C.mean(1, keepdim=True) / a.mean(1, keepdim=True),
            "divided by the norm, not its square": lambda a, C: -(C * a).sum(1, keepdim=True) / a.norm(dim=1, keepdim=True),
            "divided by ‖C‖²": lambda a, C: -(C * a).sum(1, keepdim=True) / (C * C).sum(1, keepdim=True),
            "a vector": lambda a, C: -(C * a).sum(1) / (a * a).sum(1),
        },
    ),
    "4.51": Exercise(
        "psi (E, M), gradient (E, M), eta_psi -> (E, M)",
        "as printed: |ψ̃ − η_ψ ∂L/∂ψ̃|",
        lambda p, g, n: (p - n * g).abs(),
        {
            "transposed": lambda p, g, n: (p - n * g).abs().T,
            "absolute value missing": lambda p, g, n: p - n * g,
            "absolute value before the step": lambda p, g, n: p.abs() - n * g,
            "negative parts cut": lambda p, g, n: (p - n * g).clamp(min=0),
            "ascent": lambda p, g, n: (p + n * g).abs(),
            "rate missing": lambda p, g, n: (p - g).abs(),
        },
    ),
    "4.51 derived": Exercise(
        "psi (E, M), gradient (E, M), eta_psi -> (E, M)",
        "ψ̃ − η_ψ ∂L/∂ψ̃, of either sign",
        lambda p, g, n: p - n * g,
        {
            "transposed": lambda p, g, n: (p - n * g).T,
            "as printed": lambda p, g, n: (p - n * g).abs(),
            "ascent": lambda p, g, n: p + n * g,
            "rate missing": lambda p, g, n: p - g,
            "gradient alone": lambda p, g, n: -n * g,
            "multiplicative": lambda p, g, n: p * (1 - n * g),
        },
    ),
    "4.51 gradient": Exercise(
        "gradient (E, M), alpha (E, M), eta -> (E, M)",
        "∂L/∂ψ̃ = η ∂L/∂α̃ ⊛ α^t, with gradient = ∂L/∂α̃^{t+1}",
        lambda g, a, eta: backtracking.psi_gradient(g, a, eta, tuple(a.shape)),
        {
            "transposed": lambda g, a, eta: (eta * g * a).T,
            "η missing": lambda g, a, eta: g * a,
            "α missing": lambda g, a, eta: eta * g,
            "gradient missing": lambda g, a, eta: eta * a,
            "divided by α": lambda g, a, eta: eta * g / a,
            "summed over the edges": lambda g, a, eta: (eta * g * a).sum(0).repeat(len(a), 1),
        },
    ),
    "4.52 derived": Exercise(
        "alpha_next (E, M), alpha (E, M), psi (E, M), eta, norms (M), tau -> (E, M)",
        "the update of 4.50 in the columns whose R has rank > τ (1 the smallest), α^{t+1} in the others",
        _chosen,
        {
            "transposed": lambda n, a, p, eta, r, tau: _chosen(n, a, p, eta, r, tau).T,
            "every column": lambda n, a, p, eta, r, tau: trace.update(n, a, p, eta),
            "no column": lambda n, a, p, eta, r, tau: n.clone(),
            "smallest first": lambda n, a, p, eta, r, tau: _chosen(n, a, p, eta, -r, tau),
            "rank ≥ τ": lambda n, a, p, eta, r, tau: _chosen(n, a, p, eta, r, tau - 1),
            "R itself against τ": lambda n, a, p, eta, r, tau: torch.where(r > tau, n + eta * p * a, n),
            "others left at α^t": lambda n, a, p, eta, r, tau: torch.where(
                backtracking.ranking(r) > tau, n + eta * p * a, a
            ),
            "others set to 0": lambda n, a, p, eta, r, tau: torch.where(backtracking.ranking(r) > tau, n + eta * p * a, 0.0),
            "order taken for rank": lambda n, a, p, eta, r, tau: torch.where(
                r.argsort(stable=True) + 1 > tau, n + eta * p * a, n
            ),
        },
        _with_ranks,
    ),
    "4.53": Exercise(
        "weights (M, K) -> (M)",
        "R(w_m) = ‖w_m‖², one row of weights per operation",
        lambda w: w.square().sum(1),
        {
            "square missing": lambda w: w.norm(dim=1),
            "mean instead of sum": lambda w: w.square().mean(1),
            "over the operations": lambda w: w.square().sum(0),
            "L1": lambda w: w.abs().sum(1),
            "square of the sum": lambda w: w.sum(1).square(),
        },
    ),
}

if check.__doc__:  # none under python -OO
    check.__doc__ = check.__doc__.format(signatures="\n".join("    " + line for line in signatures().splitlines()))
