"""The state of a search as a checkpoint holds it, and back: nothing is taken over before all of it is checked."""

from __future__ import annotations

import hashlib
import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..data import Data
from ..method.backtracking import SHAPES, Learned, Refreshed
from ..network.genotype import Genotype
from . import final
from .config import SearchConfig

if TYPE_CHECKING:
    from .run import SearchRun


def fingerprint(data: Data) -> str:
    """SHA-256 of the images and labels that a search sees, those of the training and the validation split; 16 digits of it."""
    digest = hashlib.sha256()
    for split in (data.train, data.validation):
        for tensor in (split.x, split.y):
            digest.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.contiguous().numpy())
    return digest.hexdigest()[:16]


def state(run: SearchRun) -> dict:
    """Everything a resumed search needs; random numbers and data order follow from the seed and the step."""
    return {
        "identity": run.identity,
        "seconds": run.seconds(),
        "done": run.done,
        "networks": {name: dict(net.state_dict()) for name, net in run.networks.items()},
        "weight_optimizers": {name: o.state_dict()["state"] for name, o in run.weight_optimizers.items()},
        "alpha_optimizers": {name: o.state_dict()["state"] for name, o in run.alpha_optimizers.items()},
        "rule": run.rule.state_dict() if hasattr(run.rule, "state_dict") else {},
        "history": run.history,
        "final": {"cells": [cell.to_json() for cell in run.cells], "losses": run.losses},
    }


def restore(run: SearchRun, state: dict, path: str) -> None:
    """Take over a state; ValueError where another search made it, or where it is damaged or none."""
    made_by = state.get("identity")
    made_by = made_by if isinstance(made_by, dict) else {}
    for name, mine in run.identity.items():
        theirs = made_by.get(name)
        if theirs != mine and not (name == "configuration" and _same_configuration(theirs, mine)):
            got = "" if name == "configuration" or not isinstance(theirs, str) else f" ({mine:.16} here, {theirs:.16} there)"
            raise ValueError(f"{path}: expected a checkpoint of this {name}, got one of another{got}")
    made_by = made_by | {"configuration": run.identity["configuration"]}  # the same, as it is written today
    state = {"final": {"cells": [], "losses": []}} | state | {"identity": made_by}
    try:
        _same_form(state, _form(run, state), "state")
        cells = [Genotype.from_json(text) for text in state["final"]["cells"]]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: expected the state of a search, got something else ({error}): delete it") from None
    if hasattr(run.rule, "load_state_dict"):
        try:
            run.rule.load_state_dict(_to(run.device, state["rule"]))
        except Exception as error:  # a reader's rule may raise anything
            why = f"{type(error).__name__}: {error}"
            raise ValueError(f"{path}: the backtracking rule refuses the state that is saved there ({why})") from None
    run.done, run.history, run.earlier = state["done"], state["history"], state["seconds"]
    run.cells, run.losses = cells, state["final"]["losses"]
    for name, net in run.networks.items():
        net.load_state_dict(state["networks"][name])
        for kind, optimizers in ("weight_optimizers", run.weight_optimizers), ("alpha_optimizers", run.alpha_optimizers):
            groups = optimizers[name].state_dict()["param_groups"]
            optimizers[name].load_state_dict({"state": state[kind][name], "param_groups": groups})


def _same_configuration(theirs: object, mine: str) -> bool:
    """Whether two JSON texts are one configuration; the earlier may lack fields that had no choice then."""
    try:
        return SearchConfig.from_json(str(theirs)) == SearchConfig.from_json(mine)
    except ValueError:
        return False


def _form(run: SearchRun, state: dict) -> dict:
    """What the state of `run` after as many steps looks like: its keys, types and shapes, and what is known beforehand."""
    done, records = state["done"], state["history"]
    if type(done) is not int or not 0 <= done <= run.total:
        raise ValueError(f"done: expected an integer from 0 to {run.total}, got {str(done):.20}")
    over, judged = max(0, done - run.searched), torch.zeros(min(final.IMAGES, len(run.data.validation)))
    positions = [run.position(step) for step in range(min(done, run.searched))]
    decided = [(name, round_, k) for round_, name, k in positions if round_ >= run.config.warmup]
    if not isinstance(records, list) or len(records) != len(decided) or not all(isinstance(r, dict) for r in records):
        raise ValueError(f"history: expected a list of {len(decided)} records")

    def moments(parameters: list[Tensor], steps: int) -> dict:
        each = ({"step": torch.tensor(float(steps)), "exp_avg": p, "exp_avg_sq": p} for p in parameters)
        return dict(enumerate(each)) if steps else {}

    nets = run.networks
    weight_steps = {name: sum(other == name for _, other, _ in positions) for name in nets}
    alpha_steps = {name: sum(other == name for other, _, _ in decided) for name in nets}
    return {
        "identity": run.identity,
        "seconds": 0.0,
        "done": done,
        "networks": {name: dict(net.state_dict()) for name, net in nets.items()},
        "weight_optimizers": {name: moments(net.weights(), weight_steps[name]) for name, net in nets.items()},
        "alpha_optimizers": {name: moments(net.alphas(), alpha_steps[name]) for name, net in nets.items()},
        "rule": _rule(run, [f"{name}/{t}" for name, net in nets.items() if alpha_steps[name] for t in net.alpha]),
        "history": [_record(run, *where, number, r) for number, (where, r) in enumerate(zip(decided, records, strict=True))],
        "final": {"cells": [""] * run.finalists if over else [], "losses": [judged] * over},
    }


def _rule(run: SearchRun, keys: list[str]):
    """The form of the rule's state; of a reader's rule only that it is a dict."""
    alpha = run.last_network.alphas()[0]
    if type(run.rule) is Learned:
        last = {"alpha": alpha, "alpha_next": alpha, "chosen": alpha.new_zeros(alpha.shape[1], dtype=torch.bool), "result": alpha}
        return {"psi": dict.fromkeys(keys, alpha.new_zeros(run.rule.sizes(*alpha.shape))), "last": dict.fromkeys(keys, last)}
    if type(run.rule) is Refreshed:
        return {"correction": dict.fromkeys(keys, alpha)}
    return dict if hasattr(run.rule, "state_dict") else {}


def _record(run: SearchRun, name: str, round_: int, k: int, number: int, given: dict) -> dict:
    """The form of one architecture step's record; ψ̃ is there where the rule offers it."""
    alphas = {t: a.detach().cpu() for t, a in run.networks[name].alpha.items()}
    form = {"network": float(name == "child"), "weight_loss": 0.0, "alpha_loss": 0.0, "distance": math.nan}
    form |= {f"alpha/{t}": a for t, a in alphas.items()}
    form |= {f"psi/{t}": a for t, a in alphas.items() if f"psi/{t}" in given}
    every = run.config.measure_every
    if every and ((round_ - run.config.warmup) * run.config.steps + k) % every == 0:
        form |= {"measured": float(number), "gradient_ratio": math.nan, "trust": math.nan}
        for t, a in alphas.items():
            form |= {f"coupling/{t}": a, f"coupling_cosine/{t}": math.nan, f"captured/{t}": torch.full((len(SHAPES),), math.nan)}
            if name == "child" and "parent" in run.networks:
                form |= {f"curvature/{t}": a, f"fisher/{t}": a, f"hessian/{t}": a}
    return form


#: whose value is known, not only its form
_KNOWN = ("identity", "done", "network", "measured", "step")


def _same_form(given, form, where: str, known: bool = False) -> None:
    """ValueError where `given` differs from `form` in keys, types, shapes or finiteness (nan in the form: anything goes)."""
    if form is dict or isinstance(form, list):
        if not isinstance(given, form if form is dict else list):
            raise ValueError(f"{where}: expected {form.__name__ if form is dict else 'list'}, got {type(given).__name__}")
    if isinstance(form, dict):
        if not isinstance(given, dict) or given.keys() != form.keys():
            got = ", ".join(map(str, given)) if isinstance(given, dict) else type(given).__name__
            raise ValueError(f"{where}: expected {', '.join(map(str, form))}, got {got}")
        for key, part in form.items():
            _same_form(given[key], part, f"{where}[{key!r}]", known or key in _KNOWN)
    elif isinstance(form, list):
        for i, (a, b) in enumerate(zip(given, form, strict=True)):
            _same_form(a, b, f"{where}[{i}]", known)
    elif isinstance(form, Tensor):
        if isinstance(given, Tensor) and known and given.is_floating_point():
            form = form.to(given.dtype)  # torch keeps an optimizer's step count in float32 or in float64
        if not isinstance(given, Tensor) or given.shape != form.shape or given.dtype != form.dtype:
            got = f"{given.dtype} {tuple(given.shape)}" if isinstance(given, Tensor) else type(given).__name__
            raise ValueError(f"{where}: expected {form.dtype} {tuple(form.shape)}, got {got}")
        if (known and not torch.equal(given, form)) or not (form.isnan().any() or given.isfinite().all()):
            raise ValueError(f"{where}: expected other numbers")
    elif form is not dict:
        wrong = type(given) is not type(form) or (known and given != form)
        if wrong or (isinstance(form, float) and not math.isfinite(given) and math.isfinite(form)):
            got = repr(given)[:40] if isinstance(given, int | float | str) else type(given).__name__
            raise ValueError(f"{where}: expected {repr(form) if known else type(form).__name__}, got {got}")


def _to(device: torch.device, state):
    if isinstance(state, dict):
        return {name: _to(device, part) for name, part in state.items()}
    return state.to(device) if isinstance(state, Tensor) else state
