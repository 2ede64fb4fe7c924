"""What a rule computes, as a digest: the same for the same rule in any process, another one for any other rule."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch

from dcpnas_lite.engine.identity import identity
from dcpnas_lite.method import backtracking
from dcpnas_lite.method.backtracking import Learned, Refreshed, no_backtracking

RULE = '''
import torch
import helper

RATE = 0.1
MASK = torch.tensor([1.0, 0.0])
NAMES = {"a", "b", "c", "d"}

def scaled(c):
    return RATE * c if "a" in {"a", "b", "c"} else c

def rule(step):
    """Words."""
    def inner(x):
        "More words."
        return helper.twice(x) * MASK
    return step.alpha_next - inner(scaled(step.coupling())) if NAMES else None

class Rule:
    """Words."""
    share = 0.5

    def __init__(self, eta=0.1, **kept):
        self.eta, self.kept = eta, kept

    def __call__(self, step):
        """Words."""
        return self.scaled(step.alpha_next)

    @staticmethod
    def scaled(x):
        return 2 * x

    @property
    def rate(self):
        return self.eta / 2
'''
HELPER = "def twice(x):\n    return 2 * x\n"


def module(name: str, source: str, monkeypatch, **edits: str) -> types.ModuleType:
    """A module made of `source` after replacing words; a word that is not there would be an edit of nothing."""
    for old, new in edits.items():
        assert old in source
        source = source.replace(old, new)
    out = types.ModuleType(name)
    monkeypatch.setitem(sys.modules, name, out)
    exec(compile(source, f"{name}.py", "exec"), vars(out))
    return out


@pytest.fixture
def made(monkeypatch):
    """identity of an expression in a fresh module RULE with the given texts replaced; helper: the same in HELPER."""

    def digest(expression: str = "rule", edits=(), helper=()) -> str:
        module("helper", HELPER, monkeypatch, **dict(helper))
        return identity(eval(expression, vars(module("mine", RULE, monkeypatch, **dict(edits)))))

    return digest


SAME = [
    ("rule", {"Words.": "Other words, and more of them."}),
    ("rule", {'    """Words."""\n': ""}),
    ("rule", {'        "More words."\n': ""}),
    ("rule", {"RATE = 0.1": "# a comment\n\n\nRATE = 0.1  # and another"}),
    ("rule", {"share = 0.5": "share = 0.6"}),  # of what it does not use
    ("rule", {"import helper": "import helper\nUNUSED = 1"}),
    ("rule", {'{"a", "b", "c", "d"}': '{"d", "c", "b", "a"}'}),
    ("Rule(0.2)", {"Words.": "Other words."}),
    ("Rule(0.2)", {"RATE = 0.1": "RATE = 0.2"}),
]
OTHER = [
    ("rule", {"RATE = 0.1": "RATE = 0.2"}),
    ("rule", {"RATE = 0.1": "RATE = 1"}),
    ("rule", {"[1.0, 0.0]": "[1.0, 0.5]"}),
    ("rule", {"[1.0, 0.0]": "[[1.0, 0.0]]"}),
    ("rule", {"[1.0, 0.0])": "[1.0, 0.0], dtype=torch.float64)"}),
    ("rule", {'"c", "d"}': '"c", "e"}'}),
    ("rule", {"RATE * c": "RATE + c"}),
    ("rule", {'in {"a"': 'in {"x"'}),
    ("rule", {"alpha_next": "alpha"}),
    ("rule", {"helper.twice(x) * MASK": "helper.twice(x) / MASK"}),
    ("Rule", {"2 * x": "3 * x"}),
    ("Rule()", {"2 * x": "3 * x"}),
    ("Rule()", {"share = 0.5": "share = 0.6"}),
    ("Rule()", {"eta=0.1": "eta=0.2"}),
    ("Rule()", {"self.eta / 2": "self.eta / 3"}),
    ("Rule().__call__", {"2 * x": "3 * x"}),
    ("lambda step: scaled(step.alpha)", {"RATE = 0.1": "RATE = 0.2"}),
    ("[rule]", {"RATE = 0.1": "RATE = 0.2"}),
]


@pytest.mark.parametrize("expression, edits", SAME)
def test_what_does_not_count(expression, edits, made):
    assert made(expression) == made(expression, edits)


@pytest.mark.parametrize("expression, edits", OTHER)
def test_what_counts(expression, edits, made):
    assert made(expression) != made(expression, edits)


def test_a_module_of_ones_own_counts_by_what_is_taken_from_it(made):
    assert made() == made(helper={"return": "# a comment\n    return"}) == made(helper={"def": "OTHER = 1\ndef"})
    assert made() != made(helper={"2 * x": "3 * x"})


def test_what_an_instance_holds(made):
    held = ["Rule()", "Rule(0.2)", "Rule(eta=1)", "Rule(True)", "Rule(1.0)", "Rule(MASK)", "Rule(MASK.numpy())", "Rule(b=1)"]
    held += ["Rule(a=[1, 2])", "Rule(a=(1, 2))", "Rule(a={1, 2})", "Rule(a=[[1], 2])", "Rule(a=scaled)", "Rule(a=torch.sin)"]
    held += ["Rule(a=torch.cos)", "Rule(a=torch.float32)", "Rule(a=Rule())", "Rule(a=Rule(1))", "Rule(a=None)", "Rule(a='None')"]
    held += ["Rule(torch.ones(2, dtype=torch.bfloat16))", "Rule(a=float('nan'))", "Rule(-0.0)", "Rule(0.0)"]
    digests = [made(expression) for expression in held]
    assert len(set(digests)) == len(held)
    assert digests == [made(expression) for expression in held]
    assert made("Rule(a=1, b=2)") == made("Rule(b=2, a=1)")


def test_the_rules_of_the_package():
    rules = [Learned(), Learned("edge"), Learned(eta=0.2), Learned(tau=3), Learned(absolute=False), Refreshed(), Refreshed(3)]
    rules += [no_backtracking, Learned, functools.partial(no_backtracking), functools.partial(Learned(), 1)]
    assert len({identity(rule) for rule in rules}) == len(rules)
    assert identity(Learned()) == identity(Learned(eta=0.1)) and identity(Refreshed(3)) == identity(Refreshed(every=3))


def test_a_changed_line_of_the_derivation_is_another_rule(monkeypatch):
    before = identity(Learned())
    monkeypatch.setattr(backtracking.trace, "update", lambda n, a, p, eta: n - eta * p * a)
    assert identity(Learned()) != before


def test_closures_defaults_partials_and_generators():
    def make(rate, shift=0):
        return lambda step, eta=shift: rate * step + eta

    assert identity(make(1)) == identity(make(1)) and len({identity(make(*a)) for a in ((1,), (2,), (1, 1))}) == 3
    one, two = (functools.partial(make, rate) for rate in (1, 2))
    assert identity(one) == identity(functools.partial(make, 1)) != identity(two)
    a, b = (np.random.default_rng(seed) for seed in (0, 1))
    assert identity(a) == identity(np.random.default_rng(0)) != identity(b)
    a, b = (torch.Generator().manual_seed(seed) for seed in (0, 1))
    assert identity(a) == identity(torch.Generator().manual_seed(0)) != identity(b)
    cached = functools.lru_cache(lambda x: x + 1)
    assert identity(cached) != identity(functools.lru_cache(lambda x: x + 2))
    assert identity(torch.nn.Linear(2, 2)) != identity(torch.nn.Linear(2, 2))  # other weights


def test_a_rule_may_hold_itself_or_what_cannot_be_taken_apart():
    def recursive(n):
        return recursive(n - 1) if n else other()

    def other():
        return recursive(0)

    held = [1]
    held.append(held)
    with open(os.devnull) as file:
        for rule in (recursive, held, [file], lambda: file, sys.modules["__main__"], iter([1]), (i for i in ())):
            assert identity(rule) == identity(rule) and len(identity(rule)) == 64


SCRIPT = """
import {name} as mine
from dcpnas_lite.method.backtracking import Learned
from dcpnas_lite.engine.identity import identity
print(*[identity(r) for r in (mine.rule, mine.Rule(0.2, a={{"x", "y", "z"}}), Learned(), lambda s: mine.rule(s))])
"""


def test_another_process_another_file_name(tmp_path):
    """Files with another name and other comments, in processes that hash strings in another order."""
    told = []
    for name, seed in (("one", "1"), ("two", "2")):
        folder = tmp_path / name
        folder.mkdir()
        (folder / f"{name}.py").write_text(f"# {name}\n" * len(told) + RULE, encoding="utf8")
        (folder / "helper.py").write_text(HELPER, encoding="utf8")
        path = os.pathsep.join([str(folder), str(Path(__file__).parents[1])])
        environment = os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": path}
        command = [sys.executable, "-c", SCRIPT.format(name=name)]
        told.append(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)
    assert told[0].count(" ") == 3 and len(set(told)) == 1


def test_what_a_rule_starts_with_belongs_to_it():
    for rule, state in ((Learned(), "psi"), (Refreshed(), "correction")):
        before = identity(rule)
        getattr(rule, state)["parent/normal"] = torch.ones(3, 8)
        assert identity(rule) != before
