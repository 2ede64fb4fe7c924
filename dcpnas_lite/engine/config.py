"""Everything that determines a search besides the data.

`SearchConfig` is put together from the classes above it, one for each part of the method. All their fields are keywords of
`SearchConfig`, and names of `--set` on the command line. Where the source's line and the corrected one differ in a search, a
field chooses between "printed" and "derived".
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from ..method import backtracking as rules
from ..network.operations import Block
from ..network.supernet import MICRO, PAPER
from ..validate import Count, Whole, validate

SPACES = {"micro": MICRO, "paper": PAPER}
Line = Literal["derived", "printed"]

#: The setting in which searches find good cells (chapter 12), for a space, and what a data set changes there.
DEFAULTS: dict[str | tuple[str, str], dict] = {
    "micro": {"channels": 16, "rounds": 6, "steps": 16, "weight_lr": 0.02},
    "paper": {"rounds": 5, "steps": 16, "tangent_every": 2},
    ("paper", "fashion_mnist"): {"steps": 32},  # more images want more steps
    ("paper", "cifar10"): {"steps": 48},
}

#: The source's own reading: the cell by the strength of α, and every line as it is printed.
AS_PRINTED = {
    "selection": "strength", "finalists": 0, "psi_shape": "edge", "absolute": True,
    "eq_4_29": "printed", "eq_4_41": "printed", "eq_4_52": "printed",
}  # fmt: skip

#: What each method changes in the default configuration.
METHODS: dict[str, dict[str, Any]] = {
    "dcp-nas": {},
    "cp-nas": {"lam": 0.0, "backtracking": "none"},
    "bnas": {"networks": "child", "lam": 0.0, "backtracking": "none"},
    "darts": {"networks": "parent", "lam": 0.0, "mu": 0.0, "backtracking": "none"},
}


@dataclass(frozen=True)
class Networks:
    """Which supernets are searched and how large they are.

    networks: "both"; "parent" searches the real-valued supernet alone, "child" the 1-bit one alone on the labels.
    block: the 1-bit convolutions of the Child, "plain" as in the text or with a real-valued "shortcut", see `Shortcut`.
    """

    networks: Literal["both", "parent", "child"] = "both"
    block: Block = "plain"
    channels: Whole = 8
    layers: Whole = 2


@dataclass(frozen=True)
class Schedule:
    """Steps and learning rates.

    rounds, steps: rounds of the loop and steps a phase. batch: images a step. warmup: first rounds without α steps.
    weight_lr, alpha_lr: Adam's learning rates; weight_lr falls to 0 by a cosine over the search.
    parent_share: where both networks search, the Parent's learning rate of α as a share of alpha_lr, which is the Child's.
    alpha_decay: Adam's L2 penalty on α.
    """

    rounds: Whole = 3
    steps: Whole = 12
    warmup: Count = 1
    batch: Whole = 32
    weight_lr: float = 0.01
    alpha_lr: float = 0.02
    parent_share: float = 1.0
    alpha_decay: float = 1e-3


@dataclass(frozen=True)
class Objective:
    """L_DCP-NAS = −G + λ D + μ L_R (Eq. 4.32) and how D is differentiated.

    lam, mu: λ of the tangent distance and μ of the reconstruction error. distance: D (Eq. 4.31).
    curvature: what stands for H_G in Eq. 4.33, see `method.tangent`; under BatchNorm `sampled` is too long, as if λ were larger.
    eq_4_29: the Parent's tangent direction. eq_4_41: the sign of what stands for H_G; as the sentence after 4.41 reads, plus.
    tangent_every: D enters every that many steps of a Child phase, with as many times λ: the lazy regularization of Karras et
    al. (*Analyzing and improving the image quality of StyleGAN*, CVPR 2020).
    """

    lam: float = 1.0
    mu: float = 1e-4
    distance: Literal["F", "L1", "cosine"] = "F"
    curvature: Literal["hessian", "gauss_newton", "sampled", "rank_one"] = "sampled"
    eq_4_29: Line = "derived"
    eq_4_41: Line = "derived"
    tangent_every: Whole = 1


@dataclass(frozen=True)
class Backtracking:
    """The rule that corrects the step of α.

    backtracking: "learned" (4.50-4.53), "refreshed" (exact one-step coupling every `refresh` steps) or "none".
    psi_shape, absolute, eta, eta_psi, tau: of `Learned`; eta also of `Refreshed`. absolute: |·| of 4.51, as printed.
    eq_4_52: the second branch of 4.52.
    """

    backtracking: Literal["learned", "refreshed", "none"] = "learned"
    psi_shape: Literal["scalar", "operation", "edge", "full"] = "full"
    absolute: bool = True
    eta: float = 0.1
    eta_psi: float = 1.0
    tau: Count = 4
    refresh: Whole = 5
    eq_4_52: Line = "derived"

    def rule(self) -> rules.Rule:
        """The backtracking rule that these fields name."""
        if self.backtracking == "learned":
            printed = self.eq_4_52 == "printed"
            return rules.Learned(self.psi_shape, self.absolute, self.eta, self.eta_psi, tau=self.tau, printed=printed)
        if self.backtracking == "refreshed":
            return rules.Refreshed(self.refresh, self.eta)
        return rules.no_backtracking


@dataclass(frozen=True)
class Reading:
    """How the cell is read off in the end.

    selection: by the "strength" of α or by "perturbation", see `method.selection`. finalists: that cell and the likeliest of its
    neighbours by one edge, so many in all, are trained for `final_epochs` each, see `engine.final`; 0 or 1: none.
    """

    selection: Literal["strength", "perturbation"] = "strength"
    finalists: Count = 0
    final_epochs: Whole = 8


@dataclass(frozen=True)
class SearchConfig(Reading, Backtracking, Objective, Schedule, Networks):
    """Everything that determines a search, besides the data. A wrong value raises ValueError naming the field.

    The fields are those of `Networks`, `Schedule`, `Objective`, `Backtracking` and `Reading`, and besides
    space: a name of `SPACES`. seed: of the initial weights, of α and of the order of the data, below 2³¹.
    measure_every: every that many α steps the exact one-step coupling and the trust in what stands for H_G are recorded; 0
    never.
    """

    space: str = "micro"
    seed: Annotated[int, 0, 2**31 - 1] = 0
    measure_every: Count = 0

    def __post_init__(self):
        validate(self)
        if self.space not in SPACES:
            raise ValueError(f"space: expected one of {', '.join(SPACES)}, got {self.space!r}")
        if self.layers < 2 and "reduce" in SPACES[self.space].cell_types:
            raise ValueError(f"layers: expected at least 2 for a space with reduction cells, got {self.layers!r}")

    @classmethod
    def method(cls, name: str, **changes) -> SearchConfig:
        """The configuration of a method of `METHODS`, with further changes."""
        if name not in METHODS:
            raise ValueError(f"method: expected one of {', '.join(METHODS)}, got {name!r}")
        return cls(**(METHODS[name] | changes))

    @classmethod
    def defaults(cls, space: str, data: str = "digits", method: str = "dcp-nas", **changes) -> SearchConfig:
        """What the command line searches by: the configuration of a method in a space on a data set, with further changes.

        See `DEFAULTS`; a data set without an entry there gets that of the space. The cell is read off by perturbation.
        """
        chosen = {"space": space, "layers": 3, "selection": "perturbation"}
        chosen |= DEFAULTS.get(space, {}) | DEFAULTS.get((space, data), {})
        return cls.method(method, **chosen | changes)

    def to_json(self) -> str:
        """JSON text with one line a field."""
        return json.dumps(dataclasses.asdict(self), indent=1)

    @classmethod
    def from_json(cls, text: str) -> SearchConfig:
        """Read the text of `to_json`; ValueError for any other, or for a field that does not exist."""
        try:
            values = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"config: expected JSON, got text that is not ({error})") from None
        if not isinstance(values, dict):
            raise ValueError(f"config: expected a JSON object, got {type(values).__name__}")
        unknown = set(values) - {field.name for field in dataclasses.fields(cls)}
        if unknown:
            raise ValueError(f"config: expected fields of SearchConfig, got {', '.join(sorted(unknown))}")
        return cls(**values)
