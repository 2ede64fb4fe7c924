"""A whole search: `search` takes the steps of `run`, resumes and saves, and stops when it is asked to."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from .. import files
from ..data import Data
from ..method import backtracking as rules
from ..network.genotype import Genotype
from ..network.supernet import Space
from . import checkpoint as checkpoints
from . import resume
from .config import SearchConfig
from .distributed import Group
from .interrupts import interrupts
from .run import Progress, SearchRun

if TYPE_CHECKING:
    from jaxtyping import Float


@dataclass(frozen=True)
class SearchResult:
    """What a search returns.

    alphas: final α per cell type, (E, M). history: NumPy arrays with one entry per architecture step, see `search`.
    seconds: time taken, up to the checkpoint included where the search was resumed. finished: False where it was interrupted.
    readings: the cell that each reading of the same supernet gives, from "strength" on; the last one is `genotype`.
    """

    genotype: Genotype
    alphas: dict[str, Float[Tensor, "E M"]]
    history: dict[str, np.ndarray]
    seconds: float
    finished: bool = True
    readings: dict[str, Genotype] = field(default_factory=dict)


class SearchStopped(Exception):
    """A callback asked to stop; the state is in the checkpoint, if there is one."""


def search(
    data: Data,
    config: SearchConfig | None = None,
    backtracking: rules.Rule | None = None,
    callback: Callable[[Progress], bool | None] | None = None,
    progress: bool = False,
    checkpoint: str | os.PathLike | None = None,
    save_every: int = 10,
    device: str = "cpu",
    precision: str = "float32",
    space: Space | None = None,
) -> SearchResult:
    """Run Algorithm 10 on `data`. The same seed on the same machine gives the identical result.

    config: default `SearchConfig.defaults("micro", data.name)`, the setting that finds good cells; a bare `SearchConfig()` is a
    small search that is read by the strength of α.
    backtracking: any rule in place of the one `config` names (the module `backtracking` says what a rule is); one with a
    `state_dict` is copied, so that the caller's stays as it was. callback: called after every step and every training of a final;
    True stops the search. checkpoint: a file that is written every `save_every` steps, and after every training, and, where it
    exists, resumed from; no other search can use it meanwhile. It knows what made it: config, space, rule, precision and the data
    that a search sees.
    precision: "float32", or "bfloat16" for the forward passes (see `network.precision`); α, losses and tangents stay float32.

    space: any `Space` in place of the one that `config` names.

    An interrupt (Ctrl-C, or a notebook's stop button) ends the search after the step in work. With a checkpoint it is saved and
    KeyboardInterrupt raised; without one the result so far is returned, with a warning and `finished` False.

    history has, per architecture step: `network` (0 Parent, 1 Child), `weight_loss`, `alpha_loss`, `distance` (D, nan in the
    Parent and where `tangent_every` leaves it out), and per cell type `alpha/T` (E, M) and, where the rule has one, `psi/T`.
    With `measure_every`, at the steps numbered in `measured`: `coupling/T` (E, M), `coupling_cosine/T` between the rule's
    correction and −C, `captured/T` (4: share of ‖C‖² that ψ of each of `SHAPES` can carry), `gradient_ratio` ‖C‖/‖∂L/∂α‖, and
    `trust` (cosine with H_G v of what the search uses for it; nan in the Parent). Of the Child, where there is a Parent, also
    the products themselves: `curvature/T`, what the search uses, `fisher/T`, −F v, and `hessian/T`, H_G v.

    Where torch.distributed is initialised (and `device` is this process's own), its processes share the search: each takes its
    part of every batch, process 0 reads and writes the checkpoint and shows the progress, and all return the same result. They
    stop together where the callback of one returns True.

    Raises FloatingPointError where a loss is no longer finite, SearchStopped where the callback returns True, ValueError for
    a checkpoint of another configuration, rule, precision or other data or for a batch that the processes cannot share equally,
    FileNotFoundError for a checkpoint in a folder that does not exist, BlockingIOError for one that another search uses, OSError
    where it cannot be written (the last good one stays), RuntimeError where α or ψ̃ differ between processes.
    """
    if save_every < 1:
        raise ValueError(f"save_every: expected at least 1 step, got {save_every!r}")
    group = Group.current(torch.device(device))
    if group.rank > 0:
        checkpoint = None
    if checkpoint is not None and not Path(checkpoint).absolute().parent.is_dir():
        raise FileNotFoundError(f"{checkpoint}: expected a file in an existing folder, {Path(checkpoint).parent} is none")
    config = SearchConfig.defaults("micro", data.name) if config is None else config
    run = SearchRun(data, config, backtracking, device, precision, group, space)
    with contextlib.nullcontext() if checkpoint is None else files.lock(checkpoint):
        saved = group.first(checkpoints.read(checkpoint) if checkpoint is not None and Path(checkpoint).exists() else None)
        if saved is not None:
            resume.restore(run, checkpoints.parse(saved, str(checkpoint)), str(checkpoint))
        finished = _steps(run, callback, progress, checkpoint, save_every)
    alphas = {t: a.detach().cpu().clone() for t, a in run.last_network.alpha.items()}
    readings = run.readings()
    return SearchResult([*readings.values()][-1], alphas, run.arrays(), run.seconds(), finished, readings)


def _steps(run: SearchRun, callback, progress: bool, checkpoint, save_every: int) -> bool:
    """All steps that are left; False where an interrupt ended them."""
    bar = tqdm(total=run.total, initial=run.done, disable=not progress or run.group.rank > 0, unit="step")
    with bar, interrupts() as interrupted:
        while run.done < run.total:
            try:
                event = run.step()
            except FloatingPointError as error:
                saved = checkpoint is not None and Path(checkpoint).exists()
                last = f"the last good state is in {checkpoint}" if saved else "there is no checkpoint"
                raise FloatingPointError(f"step {run.done}: {error}; {last}") from None
            bar.update()
            bar.set_postfix_str(f"{event.network} {event.loss:.3f} | {_short(run.genotype())}", refresh=False)
            stop = run.group.any(callback is not None and bool(callback(event)))
            ends = stop or bool(interrupted) or run.done >= run.searched  # each training of a final is kept
            if checkpoint is not None and (ends or run.done % save_every == 0):
                checkpoints.save(checkpoint, resume.state(run))
            where = f"stopped after step {run.done} of {run.total}"
            if stop:
                raise SearchStopped(where)
            if interrupted and run.done < run.total:
                if checkpoint is not None:
                    raise KeyboardInterrupt(f"{where}; the same call goes on from {checkpoint}")
                warnings.warn(f"search {where}: this is the result so far", stacklevel=3)
                return False
    return True


def _short(genotype: Genotype) -> str:
    return " ".join(name.replace("_conv", "").replace("_connect", "") for edges in genotype.normal for name, _ in edges)
