"""Several processes, one search (data parallelism): each takes its part of every batch, and what they compute is averaged.

All losses are means over the images of a batch, so the mean over equal parts is that of the whole batch: N processes compute
what one does, up to rounding. Only BatchNorm, which normalises by the images at hand, sees a process's own part.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn


@dataclass(frozen=True)
class Group:
    """The processes that share a search, numbered 0 … size − 1; by default this one alone, and then nothing is exchanged.

    Every method but `part` has to be called by all processes of the group in the same order.
    """

    rank: int = 0
    size: int = 1
    device: torch.device = torch.device("cpu")  # where tensors are exchanged

    @classmethod
    def current(cls, device: torch.device) -> Group:
        """The process group that torch.distributed was initialised with, if it was."""
        if dist.is_available() and dist.is_initialized():
            return cls(dist.get_rank(), dist.get_world_size(), device)
        return cls()

    def part(self, batch: Tensor) -> Tensor:
        """This process's share of a batch: the rank-th of `size` equal slices of the first axis."""
        return batch.chunk(self.size)[self.rank]

    def whole(self, part: Tensor) -> Tensor:
        """The batch of which every process holds its part."""
        if self.size == 1:
            return part
        parts = [torch.empty_like(part) for _ in range(self.size)]
        dist.all_gather(parts, part)
        return torch.cat(parts)

    def mean(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Mean over the processes of each tensor, detached; the tensors have one dtype."""
        if self.size == 1:
            return list(tensors)
        flat = torch.cat([t.detach().flatten() for t in tensors])
        dist.all_reduce(flat)
        parts = (flat / self.size).split([t.numel() for t in tensors])
        return [part.view_as(t) for part, t in zip(parts, tensors, strict=True)]

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any process."""
        if self.size == 1:
            return flag
        flags = torch.tensor(int(flag), device=self.device)
        dist.all_reduce(flags, dist.ReduceOp.MAX)
        return bool(flags)

    def first(self, content: bytes | None) -> bytes | None:
        """What process 0 holds."""
        if self.size == 1:
            return content
        length = torch.tensor(-1 if content is None else len(content), device=self.device)
        dist.broadcast(length, 0)
        if length < 0:
            return None
        received = torch.empty(int(length), dtype=torch.uint8, device=self.device)
        if content is not None:
            received.copy_(torch.from_numpy(np.frombuffer(content, np.uint8).copy()))
        dist.broadcast(received, 0)
        return received.cpu().numpy().tobytes()

    def check_same(self, quantity: str, tensors: Sequence[Tensor]) -> None:
        """RuntimeError in every process unless all hold the same numbers, bit by bit."""
        if self.size == 1:
            return
        flat = torch.cat([t.detach().flatten() for t in tensors])
        bounds = torch.cat([flat, -flat])
        dist.all_reduce(bounds, dist.ReduceOp.MAX)  # the largest value, and minus the smallest
        spread = (bounds[: len(flat)] + bounds[len(flat) :]).max().item()
        if spread != 0:
            raise RuntimeError(f"{quantity}: expected the same numbers in all {self.size} processes, they differ by {spread:.3g}")

    def wrap(self, network: nn.Module, fixed: Sequence[nn.Parameter]) -> nn.Module:
        """The network, `backward` of whose losses averages the gradients of all but the `fixed` parameters."""
        if self.size == 1:
            return network
        for p in fixed:  # DistributedDataParallel looks after what requires a gradient while it is built
            p.requires_grad_(False)
        wrapped = nn.parallel.DistributedDataParallel(network)
        for p in fixed:
            p.requires_grad_(True)
        return wrapped

    @staticmethod
    def backward(loss: Tensor, weights: Sequence[nn.Parameter]) -> None:
        """Set the weights' .grad to the mean over the processes of ∂loss/∂weights, where `loss` is that of a wrapped network."""
        with warnings.catch_warnings():  # a 1 × 1 kernel has several strides for one layout
            warnings.filterwarnings("ignore", "Grad strides do not match")
            loss.backward(inputs=list(weights))


ALONE = Group()
