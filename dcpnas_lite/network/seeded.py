"""Initial weights from a generator of one's own: `torch.nn` draws them from torch's global one, which all threads share."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

_DRAWS = {
    *(torch.rand, torch.randn, torch.randint, torch.randperm, torch.normal, torch.bernoulli, torch.multinomial),
    *(Tensor.uniform_, Tensor.normal_, Tensor.random_, Tensor.bernoulli_, Tensor.exponential_, Tensor.cauchy_),
    *(Tensor.bernoulli, Tensor.multinomial, Tensor.log_normal_, Tensor.geometric_),
    *(nn.init.uniform_, nn.init.normal_, nn.init.kaiming_uniform_),  # these ask the mode before they draw; the others draw by one
}


class _Drawing(TorchFunctionMode):
    def __init__(self, generator: torch.Generator):
        super().__init__()
        self.generator = generator

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function in _DRAWS and kwargs.get("generator") is None:
            kwargs = {**kwargs, "generator": self.generator}
        return function(*args, **kwargs)


def initialised_by(generator: torch.Generator) -> TorchFunctionMode:
    """`with initialised_by(generator):` modules built in this block, by this thread, draw their initial weights from `generator`.

    On the CPU the numbers are those after `torch.manual_seed(s)` for a generator seeded by s; torch's global state is left alone.
    """
    return _Drawing(generator)
