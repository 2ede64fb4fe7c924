"""What a backtracking rule computes, as a digest: a checkpoint is resumed by the rule that wrote it and by no other."""

from __future__ import annotations

import contextlib
import dis
import functools
import hashlib
import sys
import sysconfig
from collections.abc import Iterable
from pathlib import Path
from types import CodeType, FunctionType, ModuleType

import torch
from torch import Tensor

ATOMS = (type(None), bool, int, float, complex, str, bytes, type(...))
#: What Python enters in a class besides what its author wrote, or what says nothing about a result.
NOT_WRITTEN = {"__dict__", "__weakref__", "__module__", "__qualname__", "__doc__", "__annotations__"} | {
    "__annotate__", "__annotate_func__", "__annotations_cache__", "__firstlineno__", "__static_attributes__", "_abc_impl"
}  # fmt: skip
WRAPPERS = staticmethod, classmethod, type(functools.lru_cache(len))
KINDS_OF_FUNCTION = 0x04 | 0x08 | 0x20 | 0x80 | 0x100 | 0x200  # *args, **kwargs, generators, coroutines
PACKAGE = __name__.partition(".")[0]


def identity(rule: object) -> str:
    """A hex digest (SHA-256) of what `rule` computes: to be taken at the start of a search, before the rule has changed.

    It covers a function's bytecode, defaults, closure and the globals it names; a class's methods and attributes; what an
    instance holds; tensors and arrays bit by bit; and all of that again for every function, class and object met on the way,
    also where it stands in a module of one's own. It is the same in another process, for another order of a set, and after a
    change to comments, docstrings, line numbers, or the names of files.

    Python itself and installed packages count by name; this package does not, since its lines are there to be changed. An
    object that cannot be taken apart (a lock, an open file) counts by its type, a module imported inside a function by its
    name. Python's bytecode differs between its minor versions, and so does the digest.
    """
    return _Digest().of(rule).hex()


class _Digest:
    """Digests by object, each object described once; one that holds itself counts as zeros there."""

    def __init__(self):
        self.known: dict[int, bytes] = {}
        self.kept: list = []  # an id is unique only while its object lives

    def of(self, value) -> bytes:
        if type(value) in ATOMS:
            text = value if type(value) in (str, bytes) else f"{value:x}" if type(value) is int else repr(value)
            return _hash(type(value).__name__, [text if type(text) is bytes else text.encode("utf8", "surrogatepass")])
        if id(value) not in self.known:
            self.kept.append(value)
            self.known[id(value)] = bytes(32)
            self.known[id(value)] = self.describe(value)
        return self.known[id(value)]

    def each(self, kind: str, *values) -> bytes:
        return _hash(kind, map(self.of, values))

    def describe(self, value) -> bytes:
        kind = type(value)
        if kind in (list, tuple):
            return self.each(kind.__name__, *value)
        if kind in (set, frozenset):
            return _hash("set", sorted(map(self.of, value)))
        if kind is dict:
            return _hash("dict", sorted(self.of(k) + self.of(v) for k, v in value.items()))
        if kind is CodeType:
            return self.code(value)
        if isinstance(value, Tensor):
            return self.tensor(value)
        if isinstance(value, ModuleType):
            return self.each("module", value.__name__)
        if isinstance(value, FunctionType | type) and _installed(value.__module__):
            return self.each("installed", value.__module__, value.__qualname__)
        if kind is FunctionType:
            return self.function(value)
        if isinstance(value, type):
            written = sorted((name, part) for name, part in vars(value).items() if name not in NOT_WRITTEN)
            return self.each("class", *value.__bases__, *(item for pair in written for item in pair))
        if kind is property:
            return self.each("property", value.fget, value.fset, value.fdel)
        if kind in WRAPPERS:
            return self.each("wrapped", kind, value.__wrapped__)
        return self.object(value)

    def object(self, value) -> bytes:
        """By its class and by what pickle and copy would take along."""
        try:
            parts = value.__reduce_ex__(4)
        except Exception:
            return self.each("object", type(value))
        if isinstance(parts, str):
            return self.each("object", type(value), parts)
        made, state, *rest = parts[:2], *(*parts[2:], None, None, None)[:3]
        return self.each("object", type(value), *made, state, *(None if r is None else list(r) for r in rest))

    def tensor(self, value: Tensor) -> bytes:
        try:
            content = value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
        except (RuntimeError, TypeError, NotImplementedError):  # sparse, quantized, meta
            return self.each("tensor", str(value.dtype), str(value.layout), tuple(value.shape))
        return self.each("tensor", str(value.dtype), tuple(value.shape), content)

    def function(self, value: FunctionType) -> bytes:
        code, (names, loaded) = value.__code__, _names(value.__code__)
        scope = {name: value.__globals__[name] for name in loaded if name in value.__globals__}
        for name, cell in zip(code.co_freevars, value.__closure__ or (), strict=True):
            with contextlib.suppress(ValueError):  # an empty cell
                scope[name] = cell.cell_contents
        parts = [self.of(part) for part in (code, value.__defaults__, value.__kwdefaults__, vars(value))]
        for name in sorted(scope):
            parts += [self.of(name), self.named(scope[name], names, set())]
        return _hash("function", parts)

    def named(self, value, names: set[str], seen: set[int]) -> bytes:
        """A value that code refers to by name; of a module of one's own, what the code can take out of it."""
        if not isinstance(value, ModuleType) or _installed(value.__name__) or id(value) in seen:
            return self.of(value)
        seen.add(id(value))
        taken = {name: getattr(value, name) for name in sorted(names) if hasattr(value, name)}
        return _hash("module", [d for name in taken for d in (self.of(name), self.named(taken[name], names, seen))])

    def code(self, value: CodeType) -> bytes:
        """By its instructions, each with what it refers to: a docstring is a constant to which no instruction does."""
        arguments = value.co_argcount, value.co_posonlyargcount, value.co_kwonlyargcount, value.co_flags & KINDS_OF_FUNCTION
        parts = [self.of(part) for part in (*arguments, value.co_varnames, value.co_exceptiontable)]
        for instruction in dis.get_instructions(value):
            parts += [self.of(instruction.opname), self.of(instruction.argval)]
        return _hash("code", parts)


def _hash(kind: str, parts: Iterable[bytes]) -> bytes:
    return hashlib.sha256(b"\0".join([kind.encode(), b"".join(parts)])).digest()


def _names(code: CodeType) -> tuple[set[str], set[str]]:
    """All names in a function's code and in what it defines, and those of globals among them."""
    names = set(code.co_names)
    loaded = {i.argval for i in dis.get_instructions(code) if i.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            names, loaded = (mine | its for mine, its in zip((names, loaded), _names(inner), strict=True))
    return names, loaded


def _installed(module: str | None) -> bool:
    """Whether a module belongs to Python or to an installed package other than this one."""
    top = (module or "").partition(".")[0]
    if top == PACKAGE:
        return False
    file = getattr(sys.modules.get(top), "__file__", None)
    if file is None:
        return top in sys.stdlib_module_names
    path = Path(file)
    return not {"site-packages", "dist-packages"}.isdisjoint(path.parts) or path.is_relative_to(sysconfig.get_path("stdlib"))
