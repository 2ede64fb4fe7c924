"""One validator for all settings: what a field may be is said by its type."""

from __future__ import annotations

import dataclasses
import math
import numbers
import operator
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

Whole = Annotated[int, 1]  # an integer of at least 1
Count = Annotated[int, 0]  # an integer of at least 0


def integer(name: str, value: Any, least: int, most: int | None = None) -> int:
    """`value`, an integer of any type, as an int. ValueError for anything else, or if it is not in `least` … `most`."""
    try:
        if not isinstance(value, bool) and least <= (number := operator.index(value)) and (most is None or number <= most):
            return number
    except TypeError:
        pass
    raise ValueError(f"{name}: expected an integer {f'of at least {least}' if most is None else f'from {least} to {most}'}, "
                     f"got {value!r}")  # fmt: skip


def number(name: str, value, least: float = -math.inf) -> float:
    """`value` as a finite Python number; ValueError where it is none or smaller than `least`."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not math.isfinite(value) or value < least:
        bound = "" if least == -math.inf else f" of at least {least:g}"
        raise ValueError(f"{name}: expected a finite number{bound}, got {value!r}")
    return float(value)


def validate(config) -> None:
    """Check every field of a frozen dataclass by its type, and store it as that type. ValueError names the field.

    Literal: one of these. bool. Annotated[int, n] or [int, n, m]: an integer from n (to m). float: a finite number from 0 on.
    """
    hints = get_type_hints(type(config), include_extras=True)
    for field in dataclasses.fields(config):
        name, kind, value = field.name, hints[field.name], getattr(config, field.name)
        if get_origin(kind) is Literal:
            if value not in get_args(kind):
                raise ValueError(f"{name}: expected one of {', '.join(get_args(kind))}, got {value!r}")
        elif kind is bool:
            if type(value) is not bool:
                raise ValueError(f"{name}: expected True or False, got {value!r}")
        elif get_origin(kind) is Annotated:
            object.__setattr__(config, name, integer(name, value, *kind.__metadata__))
        elif kind is float:
            object.__setattr__(config, name, number(name, value, 0.0))
