"""Many searches of the micro space side by side in one wide supernet: each is `dcpnas_lite.search` with its own seed, weights,
batches, λ and backtracking rule, and tests compare the two. It made the tables methods-*, lambda-* and tuning-* of chapter 12;
all others are made by the search of the package.
"""

from __future__ import annotations

import dataclasses
import math
import sys
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parent))
from tables_gpu import widen

from dcpnas_lite.data import batches
from dcpnas_lite.engine.config import SearchConfig
from dcpnas_lite.method import backtracking as rules
from dcpnas_lite.method.algorithm10 import TANGENT_BATCHES, TEACHER_STEPS
from dcpnas_lite.method.selection import SELECTION_IMAGES
from dcpnas_lite.method.tangent import distance_slope
from dcpnas_lite.network.binarize import BinaryConv2d
from dcpnas_lite.network.operations import CONVOLUTIONS, REGISTRY
from dcpnas_lite.network.supernet import MICRO, Supernet

E, M = len(MICRO.edges), len(MICRO.operations)

#: What each member of a wide supernet may have of its own.
OWN = (
    *("seed", "weight_lr", "alpha_lr", "alpha_decay", "parent_share", "lam", "mu", "distance"),
    *("backtracking", "psi_shape", "absolute", "eta", "eta_psi", "tau", "refresh", "eq_4_41", "eq_4_52"),
)


def shared(config: SearchConfig) -> list:
    return [value for name, value in dataclasses.asdict(config).items() if name not in OWN]


class WideSupernet(nn.Module):
    """K supernets of the micro space: images (N, K · C, H, W) and α (K, E, M) or (N, K, E, M) → logits (K, N, classes)."""

    def __init__(self, nets: list[Supernet]):
        super().__init__()
        self.width, self.binary = len(nets), nets[0].binary
        self.stem = widen([n.stem for n in nets])
        self.preprocess, self.cells = nn.ModuleList(), nn.ModuleList()
        for layer, cell in enumerate(nets[0].cells):
            self.preprocess.append(widen([n.preprocess[layer][0] for n in nets]))
            self.cells.append(
                nn.ModuleList(
                    nn.ModuleDict({name: widen([n.cells[layer].edges[e][name] for n in nets]) for name in MICRO.operations})
                    for e in range(len(cell.edges))
                )
            )
        self.weight = nn.Parameter(torch.stack([n.classifier.weight.detach() for n in nets]))
        self.bias = nn.Parameter(torch.stack([n.classifier.bias.detach() for n in nets]))

    def forward(self, x: Tensor, alpha: Tensor) -> Tensor:
        mix, x = alpha.softmax(-1), self.stem(x)
        for prepare, cell in zip(self.preprocess, self.cells, strict=True):
            nodes = [prepare(x), None, None]
            for e, (i, j) in enumerate(MICRO.edges):
                terms = []
                for m, (name, op) in enumerate(cell[e].items()):
                    if name == "none":
                        continue
                    terms.append(mix[..., e, m, None, None, None] * op(nodes[i]).unflatten(1, (self.width, -1)))
                total = sum(terms[1:], terms[0]).flatten(1, 2)
                nodes[j] = total if nodes[j] is None else nodes[j] + total
            x = torch.cat([node.unflatten(1, (self.width, -1)) for node in nodes[1:]], 2).flatten(1, 2)
        features = x.mean((2, 3)).unflatten(1, (self.width, -1)).transpose(0, 1)
        return torch.baddbmm(self.bias[:, None], features, self.weight.transpose(1, 2))


class Weights:
    """All weights of a wide supernet as one (K, P) matrix, and what is known of its columns."""

    def __init__(self, net: WideSupernet, rate: Tensor):
        k, self.params, self.net = net.width, list(net.parameters()), net
        device = self.params[0].device
        channel, operation, binary, self.channels = [], [], [], 0
        owner = {}
        self.count = torch.zeros(M)
        for cell in net.cells:
            for edge in cell:
                for m, (name, op) in enumerate(edge.items()):
                    self.count[m] += 1
                    for module in op.modules():
                        if name in CONVOLUTIONS and isinstance(module, nn.Conv2d | BinaryConv2d):
                            owner[id(module.weight)] = m
        is_binary = {id(m.weight) for m in net.modules() if isinstance(m, BinaryConv2d)}
        for p in self.params:
            size = p.numel() // k
            rows = p.shape[0] // k if p.dim() == 4 else 1
            channel.append(self.channels + torch.arange(rows).repeat_interleave(size // rows))
            self.channels += rows
            operation.append(torch.full((size,), owner.get(id(p), M)))
            binary.append(torch.full((size,), float(id(p) in is_binary)))
        self.channel, self.binary = torch.cat(channel).to(device), torch.cat(binary).to(device)
        self.per_channel = torch.bincount(self.channel, minlength=self.channels).to(device)
        self.onehot = nn.functional.one_hot(torch.cat(operation), M + 1)[:, :M].to(self.params[0].dtype).to(device)
        self.flat = torch.cat([p.detach().reshape(k, -1) for p in self.params], 1)
        self.sizes = [p.numel() // k for p in self.params]
        self.m1, self.m2, self.t, self.rate = torch.zeros_like(self.flat), torch.zeros_like(self.flat), 0, rate[:, None]

    def beta(self) -> Tensor:
        """β of each weight's channel, (K, P)."""
        sums = torch.zeros(len(self.flat), self.channels, device=self.flat.device).index_add_(1, self.channel, self.flat.abs())
        return (sums / self.per_channel)[:, self.channel]

    def reconstruction_gradient(self) -> Tensor:
        """∂L_R/∂w: what is left of the product rule, since Σ (w − β sign w) sign w = 0 in every channel."""
        beta = self.beta()
        sign = torch.where(self.flat < 0, -1.0, 1.0)
        return 2 * (self.flat - beta * sign) * (1 - beta * (self.flat.abs() <= 1)) * self.binary

    def norms(self) -> Tensor:
        """R(w_m) as `weight_norms`, (K, M) on the CPU."""
        values = (self.beta() if self.net.binary else self.flat).square()
        return (values @ self.onehot).cpu() / self.count + torch.tensor(
            [REGISTRY[name].size or 0.0 for name in MICRO.operations]
        )

    def step(self, loss: Tensor, mu: Tensor, decay: float) -> None:
        """Adam on the sum over the members, each clipped to norm 5; `decay` is the cosine factor of the rate."""
        grads = torch.autograd.grad(loss, self.params)
        g = torch.cat([g.reshape(len(self.flat), -1) for g in grads], 1)
        if self.net.binary:
            g = g + mu[:, None] * self.reconstruction_gradient()
        g = g * (5 / (g.norm(dim=1, keepdim=True) + 1e-6)).clamp(max=1)
        self.flat -= decay * adam(self, g, 0.9, 0.999) * self.rate
        with torch.no_grad():
            parts = [part.reshape(p.shape) for part, p in zip(self.flat.split(self.sizes, 1), self.params, strict=True)]
            torch._foreach_copy_(self.params, parts)


def adam(state, g: Tensor, beta1: float, beta2: float) -> Tensor:
    """The direction of Adam's step; `state` holds m1, m2 and t."""
    state.t += 1
    state.m1 = beta1 * state.m1 + (1 - beta1) * g
    state.m2 = beta2 * state.m2 + (1 - beta2) * g * g
    return state.m1 / (1 - beta1**state.t) / ((state.m2 / (1 - beta2**state.t)).sqrt() + 1e-8)


class Moments:
    """Adam's state of α, (K, E, M)."""

    def __init__(self, k: int):
        self.m1, self.m2, self.t = torch.zeros(k, E, M), torch.zeros(k, E, M), 0


def searches(data, configs: list[SearchConfig], device: str, each_round=None, progress=True) -> Tensor:
    """Run all `configs` side by side; returns their final α (K, E, M). `each_round(round, α, loss)` is called after every round;
    loss maps any α (K, E, M) to L_NAS (K,) of the last network on the images that a selection by perturbation looks at.

    Raises ValueError where the configurations differ in anything but OWN, where the curvature is not "sampled" or 4.29 printed.
    """
    first, k = configs[0], len(configs)
    if any(shared(c) != shared(first) for c in configs) or (first.curvature, first.eq_4_29) != ("sampled", "derived"):
        raise ValueError(f"configs: expected sampled curvature, 4.29 derived, and no difference but in {', '.join(OWN)}")
    draws = torch.Generator(device).manual_seed(first.seed)
    phases = ("parent", "child") if first.networks == "both" else (first.networks,)
    parts: dict[str, list] = {name: [] for name in phases}
    with torch.random.fork_rng(devices=[]):
        for c in configs:
            torch.manual_seed(c.seed)
            for name in phases:
                parts[name].append(
                    Supernet(MICRO, c.channels, c.layers, len(data.classes), data.channels, binary=name == "child")
                )
    alpha = {name: torch.stack([n.alpha["normal"].detach() for n in nets]) for name, nets in parts.items()}
    if len(phases) == 2:
        alpha["child"] = alpha["parent"].clone()
    nets = {name: WideSupernet(p).to(device) for name, p in parts.items()}
    rate = torch.tensor([c.weight_lr for c in configs], device=device)
    weights = {name: Weights(net, rate) for name, net in nets.items()}
    moments = {name: Moments(k) for name in phases}
    alpha_lr, alpha_decay, lam = (
        torch.tensor([getattr(c, name) for c in configs])[:, None, None] for name in ("alpha_lr", "alpha_decay", "lam")
    )
    lam = lam * first.tangent_every * torch.tensor([-1 if c.eq_4_41 == "printed" else 1 for c in configs])[:, None, None]
    step_size = {name: alpha_lr for name in phases}
    if len(phases) == 2:
        step_size["parent"] = alpha_lr * torch.tensor([c.parent_share for c in configs])[:, None, None]
    mu = torch.tensor([c.mu for c in configs], device=device)
    update = [c.rule() for c in configs]
    splits = {s: (getattr(data, s).x.to(device), getattr(data, s).y.to(device)) for s in ("train", "validation")}
    orders: dict = {}

    def batch(split: str, n: int, salt: int) -> tuple[Tensor, Tensor]:
        x, y = splits[split]
        epoch, i = divmod(n, len(x) // first.batch)
        if (split, epoch) not in orders:
            source = getattr(data, split)
            order = [torch.stack(batches(source, first.batch, 2 * c.seed + salt, epoch, drop_last=True)) for c in configs]
            orders[split, epoch] = torch.stack(order).to(device)  # (K, batches, N)
        index = orders[split, epoch][:, i]
        return x[index].transpose(0, 1).flatten(1, 2), y[index]

    def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:  # (K,)
        return nn.functional.cross_entropy(logits.flatten(0, 1), y.flatten(), reduction="none").view(k, -1).mean(1)

    def gain(logits: Tensor, teacher: Tensor) -> Tensor:  # (K,)
        p = teacher.softmax(-1)
        return (p * (logits.log_softmax(-1) - teacher.log_softmax(-1))).sum(-1).mean(1)

    @torch.no_grad()
    def selection_loss(a: Tensor) -> Tensor:
        x, y = (part[:SELECTION_IMAGES] for part in splits["validation"])
        return cross_entropy(nets[phases[-1]](x.repeat(1, k, 1, 1), a.to(device)), y.repeat(k, 1)).cpu()

    total = first.rounds * first.steps
    for round_ in tqdm(range(first.rounds), disable=not progress, mininterval=5):
        for name in phases:
            net, teach, tangent, soft = nets[name], name == "child" and len(phases) == 2, None, []
            if teach and lam.any() and round_ >= first.warmup:
                directions = []
                for n in range(min(TANGENT_BATCHES, first.steps)):
                    x, y = batch("validation", round_ * first.steps + n, 1)
                    a = alpha["parent"].to(device).requires_grad_()
                    directions.append(torch.autograd.grad(-cross_entropy(nets["parent"](x, a), y).sum(), a)[0])
                tangent = torch.stack(directions).mean(0).cpu()
            for step in range(first.steps):
                n = round_ * first.steps + step
                (x, y), (vx, vy) = batch("train", n, 0), batch("validation", n, 1)
                current = alpha[name].to(device)
                if teach and not soft:  # as `SearchRun.soft_targets`
                    steps = range(n, n + min(TEACHER_STEPS, first.steps - step))
                    sources = [("train", 0), ("validation", 1)][: 1 + (round_ >= first.warmup)]
                    images = [batch(split, m, salt)[0] for m in steps for split, salt in sources]
                    with torch.no_grad():
                        soft = list(nets["parent"](torch.cat(images), alpha["parent"].to(device)).split(first.batch, 1))
                target = soft.pop(0) if teach else None
                vtarget = soft.pop(0) if teach and round_ >= first.warmup else None
                logits = net(x, current)
                loss = -gain(logits, target) if teach else cross_entropy(logits, y)
                weights[name].step(loss.sum(), mu, 0.5 * (1 + math.cos(math.pi * n / total)))
                if round_ < first.warmup:
                    continue
                if teach and lam.any() and step % first.tangent_every == 0:
                    copies = current.expand(first.batch, -1, -1, -1).clone().requires_grad_()
                    out = net(vx, copies)
                    gradient = torch.autograd.grad(gain(out, vtarget).sum(), copies, retain_graph=True)[0].sum(0)
                    drawn = torch.multinomial(out.detach().softmax(-1).flatten(0, 1), 1, generator=draws).view(k, -1)
                    scores = torch.autograd.grad(-cross_entropy(out, drawn).sum() * first.batch, copies)[0]
                    g = gradient.cpu()
                    slope = torch.stack([distance_slope([g[i]], [tangent[i]], c.distance)[0] for i, c in enumerate(configs)])
                    inner = torch.einsum("nkem,kem->nk", scores, slope.to(device)) / first.batch
                    product = -torch.einsum("nk,nkem->kem", inner, scores).cpu()
                    gradient = -g + lam * product
                else:
                    a = current.requires_grad_()
                    out = net(vx, a)
                    loss = -gain(out, vtarget) if teach else cross_entropy(out, vy)
                    gradient = torch.autograd.grad(loss.sum(), a)[0].cpu()
                before = alpha[name]
                after = before - step_size[name] * adam(moments[name], gradient + alpha_decay * before, 0.5, 0.999)
                norms = weights[name].norms()
                index = n - first.warmup * first.steps
                couplings: list = []

                def coupling(i, net=net, name=name, before=before, args=(x, y, vx, vy, target, vtarget, teach), store=couplings):
                    if not store:
                        store.append(wide_coupling(net, weights[name], before.to(device), *args, gain, cross_entropy, mu))
                    return store[0][i]

                alpha[name] = torch.stack(
                    [
                        update[i](
                            rules.ArchitectureStep(
                                name, "normal", index, before[i], after[i], gradient[i], norms[i], lambda i=i: coupling(i)
                            )
                        )
                        for i in range(k)
                    ]
                )
            if len(phases) == 2:
                alpha["child" if name == "parent" else "parent"] = alpha[name].clone()
        if each_round:
            each_round(round_ + 1, alpha[phases[-1]], selection_loss)
    return alpha[phases[-1]]


def wide_coupling(net, weights, alpha, x, y, vx, vy, soft, vsoft, teach, gain, cross_entropy, mu) -> Tensor:
    """`one_step_coupling` of all members, (K, E, M) on the CPU. The L_R term does not depend on α and drops out of ∂²/∂w∂α,
    but it moves w'."""
    a = alpha.clone().requires_grad_()
    out = net(x, a)
    loss = (-gain(out, soft) if teach else cross_entropy(out, y)).sum()
    gradient = torch.autograd.grad(loss, weights.params, create_graph=True)
    k = len(alpha)
    with torch.no_grad():
        g = torch.cat([t.reshape(k, -1) for t in gradient], 1)
        if net.binary:
            g = g + mu[:, None] * weights.reconstruction_gradient()
        moved = (weights.flat - weights.rate * g).split(weights.sizes, 1)
    names = [name for name, _ in net.named_parameters()]
    moved = {name: m.reshape(p.shape).requires_grad_() for name, m, p in zip(names, moved, weights.params, strict=True)}
    out = torch.func.functional_call(net, moved, (vx, alpha))
    u = torch.autograd.grad((-gain(out, vsoft) if teach else cross_entropy(out, vy)).sum(), list(moved.values()))
    inner = sum((g * t).sum() for g, t in zip(gradient, u, strict=True))
    return -(weights.rate[:, :, None] * torch.autograd.grad(inner, a)[0]).cpu()


def perturbed(alpha: Tensor, loss) -> Tensor:
    """`selection.perturbation` of all members: α (K, E, M) whose largest entries are the chosen operations."""
    alpha, members = alpha.clone(), torch.arange(len(alpha))
    candidates = [m for m, name in enumerate(MICRO.operations) if name != "none"]
    for edge in range(E):
        losses = []
        for m in candidates:
            without = alpha.clone()
            without[:, edge, m] = -math.inf
            losses.append(loss(without))
        best = torch.tensor(candidates)[torch.stack(losses).argmax(0)]
        alpha[:, edge] = -math.inf
        alpha[members, edge, best] = 0.0
    return alpha.nan_to_num(neginf=-1e9)
