"""Mixed precision: the forward pass in bfloat16 wherever torch.autocast takes it to be safe."""

from __future__ import annotations

import torch
from torch import Tensor, nn

PRECISIONS = ("float32", "bfloat16")


class MixedPrecision(nn.Module):
    """A network whose forward pass can run in bfloat16. Parameters and output, so losses and gradients too, stay float32."""

    precision = "float32"

    def set_precision(self, precision: str) -> None:
        """Run from now on in "float32" or "bfloat16"; ValueError for anything else."""
        if precision not in PRECISIONS:
            raise ValueError(f"precision: expected one of {', '.join(PRECISIONS)}, got {precision!r}")
        self.precision = precision

    def __call__(self, x: Tensor, *others, **named) -> Tensor:
        if self.precision == "float32":
            return super().__call__(x, *others, **named)
        with torch.autocast(x.device.type, torch.bfloat16):
            return super().__call__(x, *others, **named).float()
