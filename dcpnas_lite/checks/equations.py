r"""The closed table of the equations 4.20–4.53: what each one is, whether it holds, and a check that can fail.

`TABLE` has one `Equation` per number; `get("4.49").check()` runs its check. Where the printed line cannot stand, the check
runs both lines: the printed one must fail and the derived one must pass. Every check runs on several problems, of different
sizes and with entries of either sign, and is itself tried on wrong versions of what it checks (its mutation score).
The rows, with the exercises of the same numbers, stand chapter by chapter in the modules beside this one.
"""

from __future__ import annotations

from . import (
    coupled_objective,
    dividing,
    evaluation,
    full_search,
    learning_psi,
    missing_derivative,
    objectives,
    one_bit,
    packed_words,
    perturbation,
    symbolic,
    tangent_propagation,
    trace_product,
    trace_to_update,
    whole_search,
)
from .mutation import score
from .table import EXACT, KINDS, PROOFS, VERDICTS, WRONG, Check, Equation, link

__all__ = ["CHAPTERS", "EXACT", "KINDS", "PROOFS", "TABLE", "VERDICTS", "WRONG", "Check", "Equation", "get", "report"]
__all__ += ["RUNS", "markdown_errata", "markdown_glance", "markdown_index", "runs", "symbols"]

CHAPTERS = tuple(
    module.chapter
    for module in (
        whole_search,
        coupled_objective,
        missing_derivative,
        dividing,
        trace_product,
        trace_to_update,
        one_bit,
        objectives,
        tangent_propagation,
        learning_psi,
        full_search,
        evaluation,
        perturbation,
        packed_words,
    )
)
TABLE: tuple[Equation, ...] = tuple(sorted((row for chapter in CHAPTERS for row in chapter.rows), key=lambda row: row.number))


#: Where a function of the table runs besides its check; a test traces searches and compares. All others: "derivation".
RUNS = {
    "search": """method.objectives.nas_loss network.binarize.reconstruction_error network.binarize.scale network.supernet.Supernet
        method.tangent.tangent_direction method.objectives.kl_gain method.tangent.distance method.objectives.dcp_nas_loss
        method.tangent.curvature_product method.tangent.distance_slope method.tangent.loss_gradient network.binarize.sign
        method.objectives.reconstruction_loss derivation.trace.update method.backtracking.psi_gradient
        method.backtracking.backtrack method.backtracking.ranking method.backtracking.weight_norms""",
    "variant": """method.objectives.cp_nas_loss method.tangent.hessian_product method.tangent.fisher_product
        method.coupling.one_step_coupling""",
    "Algorithm 10": "network.binarize.BinaryConv2d network.binarize.BinaryConv2d.binary_weight network.supernet.MixedCell",
}


def runs(path: str) -> str:
    """Where a function of the table runs: in the default "search", in a "variant" of it, in the plain "Algorithm 10" alone (the
    search has a faster form, proven equal), or in the "derivation" only."""
    name = path.removeprefix("dcpnas_lite.")
    return next((where for where, names in RUNS.items() if name in names.split()), "derivation")


def get(number: str) -> Equation:
    """The entry of one equation; KeyError naming the range for any other number."""
    for equation in TABLE:
        if equation.number == number:
            return equation
    raise KeyError(f"expected a number from 4.20 to 4.53, got {number!r}")


def symbols(number: str) -> str:
    """The symbolic proof of a number: wrong lines refuted of those tried, or why there is none."""
    if number in symbolic.PROOFS:
        return symbolic.score(number)
    return f"none: {symbolic.NONE[number]}" if number in symbolic.NONE else "–"


def report() -> str:
    """The table with live results, as plain text: number, outcome, verdict, figure, proof, mutants caught, of the check and of
    the symbolic proof, title."""
    lines, passed = [], 0
    for equation in TABLE:
        result, proved = equation.check(), symbols(equation.number)
        right = result.passed and not proved.startswith("fails")
        passed += right
        lines.append(
            f"{equation.number}  {'pass' if right else 'FAIL'}  {equation.verdict:19}  {equation.figure(result):>9}  "
            f"{equation.proof:11}  {score(equation):>5}  {proved:30}  {equation.title}"
            + ("" if result.passed else f"\n      {result.text}")
        )
    return "\n".join([*lines, f"{passed} of {len(TABLE)} equations have a verdict and a passing check"])


def found(e: Equation, result: Check) -> str:
    """The relative error that a check found, in words that say of which line it is."""
    if not result.passed:
        return "**fails**"
    failing = {"corrected": ("as printed", "as derived"), "under an assumption": ("without the assumption", "with it")}
    if e.verdict not in failing:
        return e.figure(result)
    wrong, right = failing[e.verdict]
    least = "undefined" if e.figure(result) == "undefined" else f"≥ {e.figure(result)}"
    return f"{wrong} {least}; {right} < {e.exact:.0e}".replace("e-0", "e-")


def markdown_index() -> str:
    """The equation index as a Markdown table, with live figures."""
    heads = (
        "Eq.",
        "Line",
        "Chapter",
        "Verdict",
        "Relative error",
        "Proof",
        "Mutants caught",
        "Symbols",
        "Functions, and where they run",
    )
    rows = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    for e in TABLE:
        functions = "<br>".join(f"`{path.removeprefix('dcpnas_lite.')}` ({runs(path)})" for path in e.functions) or "–"
        lines = f"${e.printed}$" + (f"<br>as derived: ${e.derived}$" if e.derived else "")
        rows.append(
            f"| [({e.number})]({link(e.number)}) | {e.title} ({e.kind})<br>{lines} | [{int(e.chapter[:2])}]({e.chapter}.ipynb) | "
            f"{e.verdict} | {found(e, e.check())} | {e.proof} | {score(e)} | {symbols(e.number)} | {functions} |"
        )
    return "\n".join(rows)


#: What moved between the printed and the derived line of 4.42–4.50, in a few words.
MOVED = {
    "4.42": "nothing",
    "4.43": "nothing; rebuilt from the lines that use it",
    "4.44": "w becomes the diagonal matrix W",
    "4.45": "the left side becomes C; α and L̃ change places; w becomes W, differentiated by one entry of α",
    "4.46": "nothing; under softmax it leaves nothing to correct",
    "4.47": "nothing",
    "4.48": "the number of the equation that it belongs to",
    "4.49": "e′ goes from w's derivative into the contraction α L̃, and m stays free",
    "4.50": "the bracket, one number for all, becomes a full ψ = −C/α",
}


def markdown_glance() -> str:
    """The derivation, 4.42–4.50, as a Markdown table: printed line above derived line, verdict, what moved between the two."""
    rows = ["| Eq. | As printed; below it, as derived | Verdict | What moved |", "|" + "---|" * 4]
    for number, moved in MOVED.items():
        e = get(number)
        lines = "<br>".join(f"${line}$" for line in (e.printed, e.derived) if line)
        rows.append(f"| [({number})]({link(e.number)}) | {lines} | {e.verdict} | {moved} |")
    return "\n".join(rows)


def markdown_errata() -> str:
    """The errata as Markdown, in the form of a report: place, as printed, why it cannot stand, proposed, measured."""
    parts = []
    for e in TABLE:
        if e.derived:
            result = e.check()
            wrong = e.verdict == "corrected"
            why, what = (
                ("Why it cannot stand", "the printed line, at its kindest")
                if wrong
                else ("What it takes for granted", "the line where the assumption fails")
            )
            parts.append(
                f"## {e.number} {e.title}\n\n**Place.** Section 4.4, Eq. [({e.number})]({link(e.number)}); discussed in chapter "
                f"{int(e.chapter[:2])}.\n\n**As printed**\n\n$$ {e.printed} $$\n\n**{why}.** {e.reason}\n\n"
                f"**{'As derived' if wrong else 'To be read as'}**\n\n$$ {e.derived} $$\n\n"
                f"**Measured** ({'passes' if result.passed else '**fails**'}). {result.text} "
                f"Relative error of {what}: {e.figure(result)}.\n"
            )
    return "\n".join(parts)
