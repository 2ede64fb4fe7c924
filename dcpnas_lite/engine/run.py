"""The steps of a search (Algorithm 10): Parent and Child take turns, and α is inherited both ways.

A round is a Parent phase and a Child phase of `steps` steps each; a step is one weight step on a training batch and one
architecture step on a validation batch.

    Parent   w ← w − …∇_w L_NAS           α ← backtracking(α − η₁ ∂L_NAS/∂α)                     (4.21, 4.43-4.53)
             then its tangent direction ∂f̃^P/∂α; α̂ ← α                                          (4.29)
    Child    ŵ ← ŵ − …∇_ŵ (−G + μ L_R)    α̂ ← backtracking(α̂ − η₁ ∂(−G + λ D)/∂α̂)              (4.26-4.41, 4.43-4.53)
             then α ← α̂

The variants are configurations of this loop: see `METHODS`.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from ..data import Data, batches
from ..derivation import trace
from ..method import backtracking as rules
from ..method import coupling as couplings
from ..method import objectives, selection, tangent
from ..method.algorithm10 import TANGENT_BATCHES, TEACHER_STEPS
from ..network.genotype import Genotype, discretize
from ..network.operations import OPERATIONS, REGISTRY
from ..network.seeded import initialised_by
from ..network.supernet import Space, Supernet, constant
from . import final, resume
from .config import SPACES, SearchConfig
from .distributed import ALONE, Group
from .fast import accelerate
from .identity import identity

if TYPE_CHECKING:
    from jaxtyping import Float


@dataclass(frozen=True)
class Progress:
    """What a callback sees after every step, and after every training of a final."""

    step: int  # steps done, of `total`
    total: int
    network: str  # "parent" or "child", or "final"
    loss: float
    alphas: dict[str, Float[Tensor, "E M"]]

class SearchRun:
    """The state of a search between two steps."""

    def __init__(
        self,
        data: Data,
        config: SearchConfig,
        rule: rules.Rule | None = None,
        device: str = "cpu",
        precision: str = "float32",
        group: Group = ALONE,
        space: Space | None = None,
    ):
        self.started, self.earlier = time.perf_counter(), 0.0  # seconds before a resumption
        self.precision = precision
        self.data, self.config, self.device, self.group = data, config, torch.device(device), group
        self.space = SPACES[config.space] if space is None else space
        if config.layers < 2 and "reduce" in self.space.cell_types:
            raise ValueError(f"layers: expected at least 2 for a space with reduction cells, got {config.layers}")
        self.phases = ("parent", "child") if config.networks == "both" else (config.networks,)
        self.rule = config.rule() if rule is None else copy.deepcopy(rule) if hasattr(rule, "state_dict") else rule
        self.identity = {
            "configuration": config.to_json(),
            "space": f"{self.space} {identity([REGISTRY[name] for name in self.space.operations if name not in OPERATIONS]):.16}",
            "data": resume.fingerprint(data),
            "precision": precision,
            "rule": identity(self.rule),
        }
        self.searched = config.rounds * len(self.phases) * config.steps  # steps of the search; trainings of the final follow
        self.cells: list[Genotype] = []  # the finalists, once the search is over
        self.losses: list[Tensor] = []  # of their trainings, (N,) over the validation images
        self.history: list[dict] = []
        self.tangent: list[Tensor] | None = None  # ∂f̃^P/∂α of the current Child phase
        self.soft: dict[int, list[Tensor]] = {}  # step of the Child → the Parent's logits of its batches
        self.networks: dict[str, Supernet] = {}
        self.wrapped: dict[str, nn.Module] = {}
        self.weight_optimizers: dict[str, torch.optim.Optimizer] = {}
        self.alpha_optimizers: dict[str, torch.optim.Optimizer] = {}
        generator = torch.Generator().manual_seed(config.seed)
        for name in self.phases:
            with initialised_by(generator):
                binary = name == "child" and config.block
                sizes = (config.channels, config.layers, len(data.classes), data.channels)
                net = accelerate(Supernet(self.space, *sizes, binary)).to(self.device)
            net.set_precision(precision)
            self.networks[name], self.wrapped[name] = net, group.wrap(net, net.alphas())
            fused = self.device.type in ("cpu", "cuda")  # one pass over thousands of small tensors
            self.weight_optimizers[name] = torch.optim.Adam(net.weights(), lr=config.weight_lr, fused=fused)
            share = config.parent_share if name == "parent" and len(self.phases) == 2 else 1
            self.alpha_optimizers[name] = torch.optim.Adam(
                net.alphas(), lr=share * config.alpha_lr, betas=(0.5, 0.999), weight_decay=config.alpha_decay
            )
        for split in (data.train, data.validation):
            size = min(config.batch, len(split))
            if size % group.size:
                raise ValueError(f"batch: expected a multiple of the {group.size} processes, got {size} images")

        finalists = min(config.finalists, 1 + len(selection.neighbours(self.space, self.genotype())))
        self.finalists = finalists if finalists > 1 else 0
        self.done, self.total = 0, self.searched + self.finalists

    # -- where we are -------------------------------------------------------------------------------------------------

    def seconds(self) -> float:
        return self.earlier + time.perf_counter() - self.started

    @property
    def last_network(self) -> Supernet:
        return self.networks[self.phases[-1]]

    def genotype(self) -> Genotype:
        return discretize(self.space, {t: a.cpu() for t, a in self.last_network.alpha.items()})

    def position(self, step: int) -> tuple[int, str, int]:
        """(round, network, step within the phase) of a step."""
        phase, k = divmod(step, self.config.steps)
        return phase // len(self.phases), self.phases[phase % len(self.phases)], k

    def batch(self, split: str, n: int, stream: int) -> tuple[Tensor, Tensor]:
        """The n-th batch of a network's stream, this process's part of it.

        It is a function of the seed alone, so that a resumed run sees the same.
        """
        source = getattr(self.data, split)
        size = min(self.config.batch, len(source))
        epoch, k = divmod(n, len(source) // size)
        x, y = source[self.group.part(batches(source, size, 2 * self.config.seed + stream, epoch, drop_last=True)[k])]
        return x.to(self.device), y.to(self.device)

    # -- one step -----------------------------------------------------------------------------------------------------

    def step(self) -> Progress:
        """The next step of the search or, where it is over, the next training of the final."""
        return self.search_step() if self.done < self.searched else self.final_step()

    def final_step(self) -> Progress:
        net, config = self.last_network, self.config
        if not self.cells:
            cell = selection.read_cell(net, self.data.validation, config.selection)
            self.cells = selection.short_list(net, cell, self.data.validation, self.finalists)
        losses = final.validation_losses(self.cells[len(self.losses)], self.data, config, self.device, self.precision)
        (losses,) = self.group.mean([losses.to(self.device)])
        _finite("a finalist's validation loss", losses)
        self.losses.append(losses.cpu())
        self.done += 1
        alphas = {t: a.detach().clone() for t, a in net.alpha.items()}
        return Progress(self.done, self.total, "final", losses.mean().item(), alphas)

    def readings(self) -> dict[str, Genotype]:
        """The cells that the supernet gives: by "strength", where it is asked for by "perturbation", and of the "final"."""
        found = {"strength": self.genotype()}
        if self.cells:
            found[self.config.selection] = self.cells[0]
        elif self.config.selection != "strength":
            found[self.config.selection] = selection.read_cell(self.last_network, self.data.validation, self.config.selection)
        if self.done == self.total > self.searched:
            found["final"] = self.cells[final.winner(self.losses)]
        return found

    def search_step(self) -> Progress:
        round_, name, k = self.position(self.done)
        n = round_ * self.config.steps + k  # steps this network has made
        train, validation = self.batch("train", n, 0), self.batch("validation", n, 1)
        net, updates_alpha = self.networks[name], round_ >= self.config.warmup
        soft: Sequence[Tensor | None] = (None, None)
        if name == "child" and "parent" in self.networks:
            if updates_alpha and self.tangent is None and (self.config.lam > 0 or self.config.measure_every):
                self.tangent = self.parent_tangent(round_)
            soft = self.soft_targets(n, ("train", "validation") if updates_alpha else ("train",))
        record = {"network": float(name == "child"), "weight_loss": self.weight_step(name, train, soft[0], n)}
        if updates_alpha:
            record |= self.alpha_step(name, train, validation, soft, n)
            self.history.append(record)
        self.done += 1
        if len(self.phases) == 2 and k == self.config.steps - 1:  # inherit: α̂ ← α after the Parent, α ← α̂ after the Child
            self.networks["child" if name == "parent" else "parent"].inherit(net)
            self.tangent, self.soft = None, {}
        alphas = {t: a.detach().clone() for t, a in net.alpha.items()}
        return Progress(self.done, self.total, name, record["weight_loss"], alphas)

    def parent_tangent(self, round_: int) -> list[Tensor]:
        """Mean of ∂f̃^P/∂α over the first validation batches of the Child's phase (the Parent is fixed during it)."""
        parent, directions = self.networks["parent"], []
        for n in range(min(TANGENT_BATCHES, self.config.steps)):
            x, y = self.batch("validation", round_ * self.config.steps + n, 1)
            with constant(parent.weights()):
                directions.append(tangent.tangent_direction(parent(x), y, parent.alphas(), self.config.eq_4_29 == "printed"))
        return self.group.mean([torch.stack(parts).mean(0) for parts in zip(*directions, strict=True)])

    def soft_targets(self, n: int, splits: Sequence[str]) -> list[Tensor]:
        """The Parent's logits of the Child's n-th batch of each of `splits`.

        The Parent is fixed during a phase of the Child, so those of TEACHER_STEPS steps are computed together, which takes less
        time on small images; BatchNorm then normalises by all their images.
        """
        if n not in self.soft:
            k = n % self.config.steps
            first, last = n - k % TEACHER_STEPS, n - k + self.config.steps - 1  # the last one of the phase
            steps = range(first, min(first + TEACHER_STEPS, last + 1))
            images = [self.batch(split, step, stream)[0] for step in steps for stream, split in enumerate(splits)]
            with torch.no_grad():
                logits = iter(self.networks["parent"](torch.cat(images)).split([len(x) for x in images]))
            self.soft = {step: [next(logits) for _ in splits] for step in steps}
        return self.soft[n]

    def weight_step(self, name: str, train: tuple[Tensor, Tensor], soft: Tensor | None, n: int) -> float:
        net, optimizer = self.networks[name], self.weight_optimizers[name]
        cosine_lr = 0.5 * self.config.weight_lr * (1 + math.cos(math.pi * n / (self.config.rounds * self.config.steps)))
        for group in optimizer.param_groups:
            group["lr"] = cosine_lr
        with constant(net.alphas()):
            loss = self.weight_loss(name, train, soft)(self.wrapped[name])
        (mean_loss,) = self.group.mean([loss])
        _finite(f"the {name}'s weight loss", mean_loss)
        optimizer.zero_grad()
        if self.group.size > 1:
            self.group.backward(loss, net.weights())
        else:
            for w, g in zip(net.weights(), torch.autograd.grad(loss, net.weights()), strict=True):
                w.grad = g
        torch.nn.utils.clip_grad_norm_(net.weights(), couplings.CLIP)
        optimizer.step()
        return mean_loss.item()

    def weight_loss(self, name: str, batch: tuple[Tensor, Tensor], soft: Tensor | None) -> Callable[..., Tensor]:
        """L of the weight step as a function of the network."""
        plain, how = self.networks[name], (soft, self.config.lam, self.config.mu)
        return lambda net: objectives.weight_loss(plain, net(batch[0]), batch[1], *how)

    def alpha_step(self, name: str, train: tuple, validation: tuple, soft: Sequence[Tensor | None], n: int) -> dict:
        config, net, (x, y), teacher = self.config, self.networks[name], validation, soft[1]
        alphas, d = net.alphas(), math.nan
        with constant(net.weights()):
            if teacher is not None and config.lam > 0 and n % config.steps % config.tangent_every == 0:
                assert self.tangent is not None  # since the first step of α in this phase
                def draw(p):  # from the whole batch, so that the draws do not depend on how many processes share it
                    return self.group.part(self.draws(n)(self.group.whole(p)))
                logits, gain = (lambda a: net(x, a)), (lambda out: objectives.kl_gain(out, teacher))
                how = config.curvature, logits, gain, alphas, len(x), draw, config.eq_4_41 == "printed"
                value, gradient, product = tangent.curvature_product(*how)
                loss, gradient = -value, self.group.mean(gradient)
                d = tangent.distance(gradient, self.tangent, config.distance).item()
                slope = tangent.distance_slope(gradient, self.tangent, config.distance)
                pull = self.group.mean(product(slope))
                gradient = tangent.loss_gradient(gradient, pull, config.lam * config.tangent_every)
            else:
                loss = objectives.alpha_loss(net(x), y, teacher)
                gradient = self.group.mean(torch.autograd.grad(loss, alphas))
        (loss,) = self.group.mean([loss])
        _finite(f"the {name}'s architecture loss", loss, *gradient)
        before = [a.detach().clone() for a in alphas]
        for a, g in zip(alphas, gradient, strict=True):
            a.grad = g.clone()
        self.alpha_optimizers[name].step()
        after = [a.detach().clone() for a in alphas]
        _finite(f"the {name}'s α", *after)
        _set(alphas, before)  # the coupling belongs to α^t and to the weights after the weight step

        measured: dict[str, list[Tensor]] = {}
        def coupling(i: int, by: str = "gradient") -> Tensor:
            if by not in measured:
                measured[by] = self.coupling(name, train, validation, soft, by)
            return measured[by][i]

        index = n - config.warmup * config.steps
        measures = config.measure_every and index % config.measure_every == 0
        corrected = [
            rules.apply(self.rule, rules.ArchitectureStep(
                name, t, index, before[i], after[i], gradient[i], rules.weight_norms(net, t), partial(coupling, i)
            ))
            for i, t in enumerate(net.alpha)
        ]  # fmt: skip
        if measures:
            coupling(0)
        _set(alphas, corrected)
        psi = {t: p for t in net.alpha if (p := rules.recorded_psi(self.rule, name, t)) is not None}
        self.group.check_same(f"step {self.done}: the {name}'s α and ψ̃", [*alphas, *psi.values()])
        record = {"alpha_loss": loss.item(), "distance": d}
        for cell_type, a in net.alpha.items():
            record[f"alpha/{cell_type}"] = a.detach().cpu().clone()
            if cell_type in psi:
                record[f"psi/{cell_type}"] = psi[cell_type].expand_as(a).detach().cpu().clone()
        if measures:
            corrections = [a.detach() - b for a, b in zip(alphas, after, strict=True)]
            record |= self.measure(net, x, teacher, measured["gradient"], before, corrections, gradient, n)
        return record

    def draws(self, n: int) -> Callable[[Tensor], Tensor]:
        """One class for each image from its distribution, those of the Child's n-th architecture step."""
        generator = torch.Generator(self.device).manual_seed(2**20 * self.config.seed + n)
        return lambda p: torch.multinomial(p, 1, generator=generator).squeeze(1)

    # -- measurements -------------------------------------------------------------------------------------------------

    def coupling(self, name: str, train: tuple, validation: tuple, soft: Sequence[Tensor | None], by: str) -> list[Tensor]:
        """C of one weight step at the present α (see `one_step_coupling`), by plain "gradient" descent of size weight_lr or by
        the "optimizer".

        The architecture loss is L_NAS for the Parent and −G for the Child. Every process measures on the whole batches.
        """
        (u, v), (x, y) = ([self.group.whole(t) for t in batch] for batch in (train, validation))
        net, (learned, judged) = self.networks[name], [None if s is None else self.group.whole(s) for s in soft]
        by_alphas = lambda call: objectives.alpha_loss(call(x), y, judged)  # noqa: E731
        by_weights = self.weight_loss(name, (u, v), learned)
        step = self.config.weight_lr if by == "gradient" else couplings.adam_moves(self.weight_optimizers[name])
        return couplings.one_step_coupling(net, by_weights, by_alphas, net.weights(), net.alphas(), step)

    def measure(self, net, x, soft, measured, alphas, corrections, gradient, n: int) -> dict:
        """The record of `measure_every`: see `search`."""
        norm = torch.cat([c.flatten() for c in measured]).norm() / torch.cat([g.flatten() for g in gradient]).norm()
        record = {"measured": float(len(self.history)), "gradient_ratio": norm.item(), "trust": math.nan}
        for cell_type, c, alpha, correction in zip(net.alpha, measured, alphas, corrections, strict=True):
            record[f"coupling/{cell_type}"] = c.cpu()
            record[f"coupling_cosine/{cell_type}"] = couplings.cosine([correction], [-c])
            record[f"captured/{cell_type}"] = torch.tensor([trace.captured(c, alpha, shape) for shape in rules.SHAPES])
        if soft is not None:
            x, soft = self.group.whole(x), self.group.whole(soft)
            leaves = [a.clone().requires_grad_() for a in alphas]
            logits, gain = (lambda a: net(x, a)), (lambda out: objectives.kl_gain(out, soft))

            def product(kind: str, printed: bool = False) -> list[Tensor]:
                how = kind, logits, gain, leaves, len(x), self.draws(n), printed
                assert self.tangent is not None
                _, g, times = tangent.curvature_product(*how)
                return times(tangent.distance_slope(g, self.tangent, self.config.distance))

            products = {
                "curvature": product(self.config.curvature, self.config.eq_4_41 == "printed"),
                "fisher": product("gauss_newton"),
                "hessian": product("hessian"),
            }
            record["trust"] = couplings.cosine(products["curvature"], products["hessian"])
            record |= {f"{what}/{t}": p.cpu() for what, parts in products.items() for t, p in zip(net.alpha, parts, strict=True)}
        return record

    def arrays(self) -> dict[str, np.ndarray]:
        """The history as arrays; entries that only some steps have keep their own, shorter length."""
        names = dict.fromkeys(name for record in self.history for name in record)
        return {name: np.stack([np.asarray(r[name]) for r in self.history if name in r]) for name in names}


def _set(alphas: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    with torch.no_grad():
        for a, value in zip(alphas, values, strict=True):
            a.copy_(value)


def _finite(quantity: str, *tensors: Tensor) -> None:
    if not all(torch.isfinite(t).all() for t in tensors):
        raise FloatingPointError(f"{quantity} is not finite")
