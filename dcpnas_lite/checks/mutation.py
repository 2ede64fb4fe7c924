"""How good the checks are: each function of a row is replaced by wrong versions of itself, and the row's check must see it."""

from __future__ import annotations

import pkgutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from .table import Equation

RESULTS: dict[str, Callable[[Tensor], Tensor]] = {
    "zero": lambda t: t * 0,
    "negated": lambda t: -t,
    "factor missing": lambda t: t * 0.5,
    "transposed": lambda t: t.transpose(0, 1) if t.ndim > 1 else t.flip(0) if t.ndim else t * 1.5,
    "one entry for all": lambda t: t.flatten()[0].expand_as(t) if t.ndim else t * 3,
}
ARGUMENTS: dict[str, Callable[[Tensor], Tensor]] = {"blind to signs": torch.abs}  # no mutant where it changes no result
MUTANTS = (*RESULTS, *ARGUMENTS)


@contextmanager
def mutated(path: str, mutant: str) -> Iterator[list[bool]]:
    """The function at a dotted path, or what an instance of the class there returns, made wrong.

    Gives a list with one entry for every call: whether the result was changed. Not for use beside other threads.
    """
    target = pkgutil.resolve_name(path)
    owner, name = pkgutil.resolve_name(path.rpartition(".")[0]), path.rpartition(".")[2]
    if isinstance(target, type):
        owner, name = target, "forward" if issubclass(target, nn.Module) else "__call__"
    original, changed = getattr(owner, name), []

    def wrong(*args, **options):
        out = original(*args, **options)
        if mutant in RESULTS:
            changed.append(True)
            return _mapped(RESULTS[mutant], out)
        try:
            other = original(*_mapped(ARGUMENTS[mutant], args), **options)
        except RuntimeError:  # a leaf of autograd was among the arguments
            return out
        except ValueError:  # refused, which no check survives
            changed.append(True)
            raise
        changed.append(not _same(out, other))
        return other

    setattr(owner, name, wrong)
    try:
        with warnings.catch_warnings(action="ignore"):  # that a division is not exact, and the like
            yield changed
    finally:
        setattr(owner, name, original)


def _mapped(change: Callable[[Tensor], Tensor], value):
    """change applied to every floating-point tensor and number in a value, through lists and tuples."""
    if isinstance(value, Tensor):
        return change(value) if value.is_floating_point() or change is not torch.abs else value
    if isinstance(value, list | tuple):
        parts = [_mapped(change, part) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    return change(torch.tensor(value)).item() if isinstance(value, float) else value


def _same(a, b) -> bool:
    if isinstance(a, list | tuple):
        return all(map(_same, a, b))
    return torch.equal(a, b) if isinstance(a, Tensor) else a == b


def caught(equation: Equation, path: str, mutant: str) -> bool | None:
    """Whether the equation's check fails with this mutant of one of its functions; None where the mutant changes nothing."""
    with mutated(path, mutant) as changed:
        passed = equation.check().passed
    return not passed if any(changed) else None


def score(equation: Equation) -> str:
    """Mutants caught of mutants tried, "15/15"."""
    results = [caught(equation, path, mutant) for path in equation.functions for mutant in MUTANTS]
    return f"{results.count(True)}/{len(results) - results.count(None)}"
