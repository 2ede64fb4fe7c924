"""Algorithm 10, as one reads it: Parent and Child take turns, and α is inherited both ways.

It runs by itself on any space and data. What it calls are the functions that the book derives and checks; the search of `engine`
calls the same ones and gives the same α, faster, and so that it can be stopped, resumed and shared between processes.
"""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..data import Data, Split, batches
from ..network.genotype import Genotype
from ..network.seeded import initialised_by
from ..network.supernet import Space, Supernet
from . import coupling as couplings
from . import objectives, selection, tangent
from .backtracking import ArchitectureStep, Rule, apply, weight_norms
from .tangent import Tangent

if TYPE_CHECKING:
    from ..engine.config import SearchConfig

TANGENT_BATCHES = 4  # validation batches whose mean is the Parent's tangent direction of a phase
TEACHER_STEPS = 4  # steps of a Child phase whose soft targets the Parent computes together


def algorithm10(
    data: Data, config: SearchConfig, space: Space, rule: Rule | None = None
) -> tuple[Genotype, dict[str, Tensor], list[dict]]:
    """Search a cell: the genotype, α (E, M) per cell type, and a record per architecture step with the losses, D and α.

    rule: a backtracking rule in place of the one that `config` names. A final is no part of it: `engine.final` adds that.
    """
    names = ("parent", "child") if config.networks == "both" else (config.networks,)
    with initialised_by(torch.Generator().manual_seed(config.seed)):
        sizes = config.channels, config.layers, len(data.classes), data.channels
        nets = {name: Supernet(space, *sizes, binary=name == "child") for name in names}
    optimizers = {name: _optimizers(net, config.parent_share if name != names[-1] else 1.0, config) for name, net in nets.items()}
    rule, records = config.rule() if rule is None else rule, []
    for round_ in range(config.rounds):
        for name in names:
            net, searching = nets[name], round_ >= config.warmup
            steps = range(round_ * config.steps, (round_ + 1) * config.steps)
            soft, direction = {}, None
            if name == "child" and len(names) == 2:
                soft = _soft_targets(nets["parent"], data, steps, searching, config)
                direction = _direction(nets["parent"], data.validation, steps, config)
            for n in steps:
                train, validation = _batch(data.train, n, 0, config), _batch(data.validation, n, 1, config)
                to_learn, to_judge = soft.get((n, 0)), soft.get((n, 1))
                loss = _weight_step(net, optimizers[name][0], *train, to_learn, n, config)
                if searching:
                    problems = (*train, to_learn), (*validation, to_judge)
                    record = _alpha_step(name, net, optimizers[name], *problems, direction, n, config, rule)
                    records.append({"network": float(name == "child"), "weight_loss": loss} | record)
            if len(names) == 2:
                nets["child" if name == "parent" else "parent"].inherit(net)
    last = nets[names[-1]]
    return selection.read_cell(last, data.validation, config.selection), {t: a.detach() for t, a in last.alpha.items()}, records


def _weight_step(net, optimizer, x, y, soft, n: int, config) -> float:
    """w ← w − … ∂L/∂w: L_NAS of the Parent (4.21), L_CP-NAS or L_DCP-NAS of the Child (4.26, 4.32, 4.34)."""
    optimizer.param_groups[0]["lr"] = 0.5 * config.weight_lr * (1 + math.cos(math.pi * n / (config.rounds * config.steps)))
    loss = objectives.weight_loss(net, net(x), y, soft, config.lam, config.mu)
    for w, g in zip(net.weights(), torch.autograd.grad(loss, net.weights()), strict=True):
        w.grad = g
    torch.nn.utils.clip_grad_norm_(net.weights(), couplings.CLIP)
    optimizer.step()
    return loss.item()


def _alpha_step(name: str, net, optimizers, train, validation, direction, n: int, config, rule) -> dict:
    """α^{t+1} = α^t − η₁ ∂L/∂α^t by Adam, corrected for the coupling of α and w by the rule (4.43, 4.50-4.53)."""
    (x, y, soft), (u, v, judged) = train, validation
    loss, d, gradient = _alpha_gradient(net, u, v, judged, direction, n, config)
    before = [a.detach().clone() for a in net.alphas()]
    for a, g in zip(net.alphas(), gradient, strict=True):
        a.grad = g.clone()
    optimizers[1].step()
    after = [a.detach().clone() for a in net.alphas()]
    _set(net, before)  # the coupling belongs to α^t

    def coupling(i: int, by: str = "gradient") -> Tensor:
        by_weights = lambda call: objectives.weight_loss(net, call(x), y, soft, config.lam, config.mu)  # noqa: E731
        by_alphas = lambda call: objectives.alpha_loss(call(u), v, judged)  # noqa: E731
        step = config.weight_lr if by == "gradient" else couplings.adam_moves(optimizers[0])
        return couplings.one_step_coupling(net, by_weights, by_alphas, net.weights(), net.alphas(), step)[i]

    index = n - config.warmup * config.steps
    _set(net, [
        apply(rule, ArchitectureStep(name, t, index, old, new, g, weight_norms(net, t), partial(coupling, i)))
        for i, (t, old, new, g) in enumerate(zip(net.alpha, before, after, gradient, strict=True))
    ])  # fmt: skip
    return {"alpha_loss": loss, "distance": d} | {f"alpha/{t}": a.detach().clone() for t, a in net.alpha.items()}


def _alpha_gradient(net, x, y, soft, direction: Tangent | None, n: int, config) -> tuple[float, float, Tangent]:
    """The loss of α, D, and the gradient: ∂L_NAS/∂α of the Parent, −∂G/∂α̂ + λ ∇D of the Child (4.33)."""
    if direction is None or config.lam == 0 or n % config.steps % config.tangent_every:
        loss = objectives.alpha_loss(net(x), y, soft)
        return loss.item(), math.nan, list(torch.autograd.grad(loss, net.alphas()))
    generator = torch.Generator().manual_seed(2**20 * config.seed + n)
    draw = lambda p: torch.multinomial(p, 1, generator=generator).squeeze(1)  # noqa: E731
    logits, gain = (lambda alphas: net(x, alphas)), (lambda out: objectives.kl_gain(out, soft))
    how = config.curvature, logits, gain, net.alphas(), len(x), draw, config.eq_4_41 == "printed"
    value, gradient, product = tangent.curvature_product(*how)
    slope = tangent.distance_slope(gradient, direction, config.distance)
    d = tangent.distance(gradient, direction, config.distance).item()
    return -value.item(), d, tangent.loss_gradient(gradient, product(slope), config.lam * config.tangent_every)


def _direction(parent, validation: Split, steps: range, config) -> Tangent:
    """∂f̃^P/∂α of the Parent (4.29), mean over the first validation batches of the Child's phase."""
    firsts = [_batch(validation, n, 1, config) for n in steps[:TANGENT_BATCHES]]
    each = [tangent.tangent_direction(parent(x), y, parent.alphas(), config.eq_4_29 == "printed") for x, y in firsts]
    return [torch.stack(parts).mean(0) for parts in zip(*each, strict=True)]


def _soft_targets(parent, data: Data, steps: range, searching: bool, config) -> dict[tuple[int, int], Tensor]:
    """The Parent's logits of the Child's batches, by step and stream: 0 training, 1 validation images."""
    soft, streams = dict[tuple[int, int], Tensor](), (0, 1) if searching else (0,)
    for first in range(0, len(steps), TEACHER_STEPS):
        keys = [(n, stream) for n in steps[first : first + TEACHER_STEPS] for stream in streams]
        images = [_batch((data.train, data.validation)[stream], n, stream, config)[0] for n, stream in keys]
        soft |= zip(keys, parent(torch.cat(images)).detach().split([len(x) for x in images]), strict=True)
    return soft


def _batch(split: Split, n: int, stream: int, config) -> tuple[Tensor, Tensor]:
    """The n-th batch of a stream; a function of the seed alone."""
    size = min(config.batch, len(split))
    epoch, k = divmod(n, len(split) // size)
    return split[batches(split, size, 2 * config.seed + stream, epoch, drop_last=True)[k]]


def _optimizers(net, share: float, config) -> tuple[torch.optim.Adam, torch.optim.Adam]:
    by_alphas = torch.optim.Adam(net.alphas(), lr=share * config.alpha_lr, betas=(0.5, 0.999), weight_decay=config.alpha_decay)
    return torch.optim.Adam(net.weights(), lr=config.weight_lr), by_alphas


def _set(net, alphas: list[Tensor]) -> None:
    with torch.no_grad():
        for a, value in zip(net.alphas(), alphas, strict=True):
            a.copy_(value)
