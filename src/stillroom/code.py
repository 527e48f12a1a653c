"""A digest of what a user's own code computes: equal digests mean equal code.

Bytecode is read, not source: the file may have been edited since, two lambdas may share a line, and
what is typed at a prompt has no file. Comments, docstrings and line numbers count for nothing;
another minor version of Python gives another digest.
All that code names is followed: globals, imports, attributes of modules, closures, base classes,
members, state of objects. An installed package counts by its version; stillroom by name alone,
because `Stage.key` digests its files. What cannot be read (a lock, a C function of one's own) gives
another digest in every process: work is done again. Not seen: files that code reads, and modules
that it imports by a text.
"""

from __future__ import annotations

import copyreg
import dis
import functools
import hashlib
import importlib.util
import os
import re
import sys
import types
import uuid
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

MAX_OBJECTS = 10**6  # a user's `__reduce__` may make new objects without end
_PLAIN = (type(None), bool, int, float, complex, str, bytes, range, type(...), type(NotImplemented))
_PARTS: dict[type, tuple[str, ...]] = {  # what pickle does not take apart
    types.MethodType: ("__func__", "__self__"),
    staticmethod: ("__func__",),
    classmethod: ("__func__",),
    property: ("fget", "fset", "fdel"),
    functools.cached_property: ("func",),
    functools._lru_cache_wrapper: ("__wrapped__",),
}
_C = (types.MethodDescriptorType, types.WrapperDescriptorType, types.GetSetDescriptorType)
_HEAP = 1 << 9  # flag of classes that were not compiled into C
# Where a class or module is and what it is for, not what it does.
_CLASS = ("__doc__", "__module__", "__qualname__", "__firstlineno__", "__static_attributes__")
_MODULE = (
    *("__name__", "__doc__", "__package__", "__loader__", "__spec__", "__path__", "__file__"),
    *("__cached__", "__builtins__", "__annotations__", "__warningregistry__"),
)
_GLOBAL = ("LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS")
_ATTRIBUTE = ("LOAD_ATTR", "LOAD_METHOD", "IMPORT_FROM")


def digest(value: object) -> str:
    """Return hex digits that change with what a function, class or object computes."""
    walk = _Walk({})
    walk.add(value)
    return walk.finish()


class _Walk:
    """Hashes a graph of objects; each is numbered when it is met, and described in its turn.

    In turn, because a chain of functions may be longer than Python's stack.
    """

    def __init__(self, seen: dict[object, int]) -> None:
        self.hash = hashlib.sha256()
        self.seen = dict(seen)
        self.todo: list[Any] = []  # all that is numbered stays here, so that no id is given twice

    def put(self, *texts: object) -> None:
        self.hash.update(repr(texts).encode())

    def add(self, value: Any) -> None:
        if type(value) in _PLAIN:
            self.put(value)
        elif type(value) is tuple:  # not numbered: whether equal constants are one is chance
            self.put("tuple", len(value))
            for item in value:
                self.add(item)
        elif type(value) in (set, frozenset):
            self.put("set", sorted(map(self._apart, value)))
        elif self._is_new(id(value)):
            self.todo.append(value)

    def finish(self) -> str:
        """Describe all that was added, and all that this names; return the digest."""
        for value in self.todo:
            if len(self.todo) > MAX_OBJECTS:
                self.put("endless", _nonce(_Same(self.todo[0])))
                break
            try:
                self._describe(value)
            except Exception:  # a user's `__reduce__` may raise anything
                self.put("unreadable", _nonce(_Same(value)))
        return self.hash.hexdigest()

    def _apart(self, item: object) -> str:
        """The digest of one element: a set has no order."""
        walk = _Walk(self.seen)
        walk.add(item)
        return walk.finish()

    def _is_new(self, key: object) -> bool:
        new = key not in self.seen
        self.put("object", self.seen.setdefault(key, len(self.seen)))
        return new

    def _describe(self, value: Any) -> None:
        kind, torch = type(value), sys.modules.get("torch")
        if public := _public(value):
            self.put(public)
        elif isinstance(value, types.ModuleType):
            self._reach(value, None)
        elif isinstance(value, types.FunctionType):
            self._function(value)
        elif isinstance(value, type):
            self._class(value)
        elif parts := next((p for known, p in _PARTS.items() if isinstance(value, known)), None):
            self.add((kind, *(getattr(value, name) for name in parts)))
        elif torch is not None and isinstance(value, torch.Tensor):
            raw = value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
            self.put(kind.__name__, value.dtype, tuple(value.shape), value.requires_grad)
            self.put(hashlib.sha256(raw).hexdigest())
        elif hasattr(kind, "__pydantic_fields__"):
            # Each apart: whether a field was given, or holds the very default, is not its value.
            self.put(*(digest(getattr(value, name)) for name in kind.__pydantic_fields__))
            self.add((kind, value.__pydantic_extra__, value.__pydantic_private__))
        else:
            self._object(value)

    def _object(self, value: Any) -> None:
        """What pickle would keep of it: its class, and its state."""
        reduce = copyreg.dispatch_table.get(type(value))
        parts = reduce(value) if reduce else value.__reduce_ex__(4)
        opaque = isinstance(value, _C) and not _public(value.__objclass__)
        if opaque or isinstance(parts, str):
            parts = (_public(value, str(parts)) or _nonce(_Same(value)),)
        self.add(tuple(tuple(part) if isinstance(part, Iterator) else part for part in parts))

    def _class(self, value: type) -> None:
        space = vars(value)
        self.put(value.__name__, re.sub(" at 0x[0-9a-f]+", "", repr(space.get("__annotations__"))))
        self.add((type(value), value.__bases__))
        for name, member in sorted(space.items()):
            kept = callable(member) or isinstance(member, (*_PARTS,)) or type(member) in _PLAIN
            hidden = name == "_abc_impl" or name.startswith("__pydantic") or name in _CLASS
            if not hidden and (kept or not (name.startswith("__") and name.endswith("__"))):
                self.add((name, member))
        for models in ("__pydantic_fields__", "__private_attributes__"):
            for name, item in space.get(models, {}).items():
                rules = getattr(item, "metadata", None)
                self.add((name, item.default, item.default_factory, rules))

    def _function(self, value: types.FunctionType) -> None:
        space, steps = value.__globals__, list(_steps(value.__code__))
        self.put(value.__name__, _signature(value.__code__))
        for step in steps:
            self.put(step.opname)
            if isinstance(step.argval, types.CodeType):
                self.put(_signature(step.argval))
            elif step.opcode in dis.hasconst:
                self.add(step.argval)
            else:
                self.put(step.arg, step.argval if isinstance(step.argval, str) else None)
        self.add((value.__defaults__, value.__kwdefaults__, vars(value)))
        names = dict.fromkeys(s.argval for s in steps if s.opname in _GLOBAL)
        attributes = frozenset(s.argval for s in steps if s.opname in _ATTRIBUTE)
        computed = {"getattr", "vars"} & names.keys() or "__dict__" in attributes
        taken = None if computed else attributes
        if {"globals", "eval", "exec"} & names.keys():
            names |= dict.fromkeys(space)
        for cell in value.__closure__ or ():
            self._reach(cell.cell_contents, taken)
        for name in names:
            if name in space and name not in _MODULE:
                self.put(name)
                self._reach(space[name], taken)
        for level, parts, step in zip(steps, steps[1:], steps[2:], strict=False):
            if step.opname == "IMPORT_NAME":
                self._reach(_imported(step.argval, space, parts.argval, level.argval), taken)

    def _reach(self, value: Any, taken: frozenset[str] | None) -> None:
        """Add what code names; of a user's module these attributes alone (None: all)."""
        if not isinstance(value, types.ModuleType) or _public(value):
            self.add(value)
        elif self._is_new((id(value), taken)):
            for name in sorted(vars(value) if taken is None else taken):
                if hasattr(value, name) and name not in _MODULE:
                    self.put(name)
                    self._reach(getattr(value, name), taken)


def _steps(code: types.CodeType) -> Iterator[dis.Instruction]:
    """The instructions of a function and of all code inside it, but for what changes no result."""
    steps = [step for step in dis.get_instructions(code) if step.opname != "EXTENDED_ARG"]
    for step, after in zip(steps, [*steps[1:], steps[-1]], strict=True):
        if not any(s.opname == "STORE_NAME" and s.argval in _CLASS for s in (step, after)):
            yield step
            if isinstance(step.argval, types.CodeType):
                yield from _steps(step.argval)


def _signature(code: types.CodeType) -> tuple[object, ...]:
    counts = (code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags)
    names = (code.co_varnames, code.co_cellvars, code.co_freevars)
    return (*counts, *names, code.co_exceptiontable)


def _imported(name: str, space: dict[str, Any], parts: Any, level: int) -> object:
    """What `import` in a function gives; of a package its name, without importing it."""
    if level == 0 and (package := _package(name)):
        return package
    try:
        return __import__(name, space, None, parts, level)
    except Exception:  # absent, or whatever a user's module raises while it is imported
        return None


def _public(value: Any, *names: str) -> str:
    """Package and name that lead back to `value`; empty if no installed package brings it."""
    is_module = isinstance(value, types.ModuleType)
    module = str(value.__name__ if is_module else getattr(value, "__module__", ""))
    # A wrapper takes over the `__module__` of what it wraps, but not its globals.
    wraps = isinstance(value, types.FunctionType)
    home = str(value.__globals__.get("__name__", "")) if wraps else module
    if (package := _package(module)) is None or _package(home) is None:
        return ""
    for name in (*names, getattr(value, "__qualname__", ""), getattr(value, "__name__", "")):
        found: Any = sys.modules.get(module)
        for part in str(name).split("."):
            found = getattr(found, part, None)
        if found is value or (isinstance(value, type) and not value.__flags__ & _HEAP):
            return f"{package} {module}:{name}"
    return f"{package} {module}" if is_module else ""


def _package(module: str) -> str | None:
    """What brings a module, with its version; None if it is a user's own file, or has none."""
    top, found = module.partition(".")[0], sys.modules.get(module)
    if top == "stillroom":
        return top
    try:
        spec = importlib.util.find_spec(top) if found is None else found.__spec__
    except (AttributeError, ImportError, ValueError):
        spec = None
    file = Path(getattr(found, "__file__", None) or getattr(spec, "origin", None) or "")
    if {"site-packages", "dist-packages"} & set(file.parts):
        return _version(top)
    library = str(file) in ("built-in", "frozen") or file.is_relative_to(Path(os.__file__).parent)
    return "python" if library else None


@functools.cache
def _version(top: str) -> str | None:
    """The distribution that holds a top-level module; not which build of it (`+cpu`)."""
    name = top
    try:
        metadata.version(top)
    except metadata.PackageNotFoundError:
        name = metadata.packages_distributions().get(top, [""])[0]
    return f"{name} {metadata.version(name).partition('+')[0]}" if name else None


class _Same:
    """Equal only to another wrapper of the very same object."""

    def __init__(self, value: object) -> None:
        self.value = value

    def __hash__(self) -> int:
        return id(self.value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.value is other.value


@functools.cache
def _nonce(value: _Same) -> str:
    """Digits that no other object and no other process has; the object is kept alive for them."""
    return uuid.uuid4().hex
