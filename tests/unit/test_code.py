"""Digests of a user's own code: another one for other code, the same in every process."""

from __future__ import annotations

import ctypes
import enum
import functools
import io
import json
import os
import subprocess
import sys
import threading
import types
from array import array
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from stillroom import code
from stillroom.artefacts import executor
from stillroom.artefacts.executor import Job, Processes, Serial
from stillroom.artefacts.stage import Stage
from stillroom.artefacts.store import Store, obtain
from stillroom.code import digest
from stillroom.config import Model
from stillroom.distilled import Distilled, load
from stillroom.errors import StillroomError
from stillroom.evaluation.published import find_protocol
from stillroom.methods.base import Method, Optim, Outer, Synth
from stillroom.methods.distil import Distil, _foreign_code
from stillroom.nets.zoo import Arch, resolve
from stillroom.run.fits import student_of
from stillroom.run.judge import evaluate
from stillroom.run.judging import Asked
from stillroom.run.options import Machine
from stillroom.runtime import Runtime
from stillroom.session import Session
from stillroom.types import Preprocess

CPU = Runtime(device=torch.device("cpu"))


def typed(source: str) -> dict[str, Any]:
    """The names that a text defines when it is run without a file, as at a prompt."""
    space: dict[str, Any] = {"__name__": "typed_at_a_prompt"}
    exec(compile(source, "<typed>", "exec", dont_inherit=True), space)
    return space


def of(source: str) -> str:
    """The digest of what a text calls `f`."""
    return digest(typed(source)["f"])


# -- what counts ----------------------------------------------------------------------------------
DIFFERENT = {
    "constant": ("f = lambda: 1", "f = lambda: 2"),
    "type of a constant": ("f = lambda: 1", "f = lambda: 1.0"),
    "zero's sign": ("f = lambda: 0.0", "f = lambda: -0.0"),
    "set of constants": ("f = lambda x: x in {1, 2}", "f = lambda x: x in {1, 3}"),
    "operator": ("f = lambda x: x + x", "f = lambda x: x - x"),
    "attribute": ("f = lambda x: x.a()", "f = lambda x: x.b()"),
    "sign": ("f = lambda x: -x", "f = lambda x: ~x"),
    "name of a parameter": ("f = lambda width: 1", "f = lambda depth: 1"),
    "kind of a parameter": ("f = lambda x: 1", "f = lambda *x: 1"),
    "nested parameter": ("f = lambda: lambda width: 1", "f = lambda: lambda depth: 1"),
    "default": ("def f(x=1): return x", "def f(x=2): return x"),
    "keyword default": ("def f(*, x=1): return x", "def f(*, x=2): return x"),
    "nested": (
        "def f():\n def g(): return 1\n return g",
        "def f():\n def g(): return 2\n return g",
    ),
    "local class": ("def f():\n class A:\n  w = 1", "def f():\n class A:\n  w = 2"),
    "handler": ("def f():\n try: g()\n except OSError: 1", "def f():\n try: g()\n finally: 1"),
    "global": ("W = 8\ndef f(): return W", "W = 9\ndef f(): return W"),
    "global of a class body": (
        "W = 8\ndef f():\n class A: w = W",
        "W = 9\ndef f():\n class A: w = W",
    ),
    "table": ("W = {'a': (1, [2])}\ndef f(): return W", "W = {'a': (1, [3])}\ndef f(): return W"),
    "helper": (
        "def g(): return 1\ndef f(): return g()",
        "def g(): return 2\ndef f(): return g()",
    ),
    "helper's helper": (
        "def h(): return 1\ndef g(): return h\nf = lambda: [g() for _ in '']",
        "def h(): return 2\ndef g(): return h\nf = lambda: [g() for _ in '']",
    ),
    "helper in a table": (
        "def g(): return 1\nT = {'g': g}\ndef f(n): return T[n]()",
        "def g(): return 2\nT = {'g': g}\ndef f(n): return T[n]()",
    ),
    "helper by globals()": (
        "def g(): return 1\ndef f(n): return globals()[n]()",
        "def g(): return 2\ndef f(n): return globals()[n]()",
    ),
    "base": (
        "class A:\n def g(self): return 1\nclass f(A): pass",
        "class A:\n def g(self): return 2\nclass f(A): pass",
    ),
    "metaclass": (
        "class M(type):\n def g(cls): return 1\nclass f(metaclass=M): pass",
        "class M(type):\n def g(cls): return 2\nclass f(metaclass=M): pass",
    ),
    "method": ("class f:\n def g(self): return 1", "class f:\n def g(self): return 2"),
    "special method": (
        "class f:\n def __call__(self): return 1",
        "class f:\n def __call__(self): return 2",
    ),
    "static method": (
        "class f:\n @staticmethod\n def g(): return 1",
        "class f:\n @staticmethod\n def g(): return 2",
    ),
    "class method": (
        "class f:\n @classmethod\n def g(cls): return 1",
        "class f:\n @classmethod\n def g(cls): return 2",
    ),
    "property": (
        "class f:\n @property\n def g(self): return 1",
        "class f:\n @property\n def g(self): return 2",
    ),
    "cached property": (
        "import functools as t\nclass f:\n @t.cached_property\n def g(self): return 1",
        "import functools as t\nclass f:\n @t.cached_property\n def g(self): return 2",
    ),
    "attribute of a class": ("class f: w = 8", "class f: w = 9"),
    "special attribute": ("class f: __w__ = 8", "class f: __w__ = 9"),
    "nested class": ("class f:\n class g: w = 8", "class f:\n class g: w = 9"),
    "cached function": (
        "import functools\n@functools.cache\ndef f(): return 1",
        "import functools\n@functools.cache\ndef f(): return 2",
    ),
    "wrapped function": (
        "import torch\n@torch.no_grad()\ndef f(): return 1",
        "import torch\n@torch.no_grad()\ndef f(): return 2",
    ),
    "bound method": (
        "class A:\n def g(self): return 1\nf = A().g",
        "class A:\n def g(self): return 2\nf = A().g",
    ),
    "state of an object": (
        "class A:\n def __init__(s, w): s.w = w\n def __call__(s): return s.w\nf = A(1)",
        "class A:\n def __init__(s, w): s.w = w\n def __call__(s): return s.w\nf = A(2)",
    ),
    "code of an object": (
        "class A:\n def __call__(s): return 1\nf = A()",
        "class A:\n def __call__(s): return 2\nf = A()",
    ),
    "tensor": (
        "import torch\nW = torch.zeros(2)\ndef f(): return W",
        "import torch\nW = torch.zeros(3)\ndef f(): return W",
    ),
    "value of a tensor": (
        "import torch\nW = torch.ones(2, dtype=torch.bfloat16)\ndef f(): return W",
        "import torch\nW = torch.zeros(2, dtype=torch.bfloat16)\ndef f(): return W",
    ),
    "array": (
        "import numpy\nW = numpy.zeros(2)\ndef f(): return W",
        "import numpy\nW = numpy.ones(2)\ndef f(): return W",
    ),
    "default of a dataclass": (
        "import dataclasses\n@dataclasses.dataclass\nclass f:\n w: int = 8",
        "import dataclasses\n@dataclasses.dataclass\nclass f:\n w: int = 9",
    ),
    "default of a model": (
        "import pydantic\nclass f(pydantic.BaseModel):\n w: int = 8",
        "import pydantic\nclass f(pydantic.BaseModel):\n w: int = 9",
    ),
    "rule of a model": (
        "import pydantic\nclass f(pydantic.BaseModel):\n w: int = pydantic.Field(8, ge=1)",
        "import pydantic\nclass f(pydantic.BaseModel):\n w: int = pydantic.Field(8, ge=2)",
    ),
    "private attribute of a model": (
        "import pydantic as p\nclass f(p.BaseModel):\n _w: int = p.PrivateAttr(8)",
        "import pydantic as p\nclass f(p.BaseModel):\n _w: int = p.PrivateAttr(9)",
    ),
    "type in a model": (
        "import pydantic\nclass f(pydantic.BaseModel):\n w: int = 8",
        "import pydantic\nclass f(pydantic.BaseModel):\n w: float = 8",
    ),
    "pattern": (
        "import re\nW = re.compile('a')\ndef f(): return W",
        "import re\nW = re.compile('b')\ndef f(): return W",
    ),
    "default factory of a model": (
        "import pydantic as p\nclass f(p.BaseModel):\n w: int = p.Field(default_factory=lambda: 1)",
        "import pydantic as p\nclass f(p.BaseModel):\n w: int = p.Field(default_factory=lambda: 2)",
    ),
    "package": (
        "from math import sin as g\nf = lambda: g",
        "from math import cos as g\nf = lambda: g",
    ),
    "closure": (
        "def m(w):\n def g(): return w\n return g\nf = m(8)",
        "def m(w):\n def g(): return w\n return g\nf = m(16)",
    ),
    "partial": (
        "import functools\nf = functools.partial(dict, w=8)",
        "import functools\nf = functools.partial(dict, w=16)",
    ),
    "argument of a partial": (
        "import functools\nf = functools.partial(max, 8)",
        "import functools\nf = functools.partial(max, 16)",
    ),
    "function in a partial": (
        "import functools\nf = functools.partial(lambda: 8)",
        "import functools\nf = functools.partial(lambda: 16)",
    ),
}
SAME = {
    "comment": ("def f(): return 1", "# that is one\ndef f():\n\n    return 1  # one"),
    "docstring": ("class f:\n 'a'\n def g(s): 'a'", "class f:\n 'b'\n\n def g(s): 'b'"),
    "docstring of a local class": ("def f():\n class A: 'a'", "def f():\n class A: 'b'"),
    "line of a local class": ("def f():\n class A: w = 1", "def f():\n\n\n class A: w = 1"),
    "order of members": ("class f:\n a = 1\n b = 2", "class f:\n b = 2\n a = 1"),
    "neighbour": (
        "def g(): return 1\ndef f(): return 1",
        "def g(): return 2\ndef f(): return 1",
    ),
    "annotation": ("def f(x: int): return x", "def f(x: float): return x"),
}


@pytest.mark.parametrize("what", DIFFERENT)
def test_other_code_has_another_digest(what: str) -> None:
    one, two = DIFFERENT[what]
    assert of(one) == of(one), "the same code, run again"
    assert of(one) != of(two)


@pytest.mark.parametrize("what", SAME)
def test_what_computes_the_same_has_one_digest(what: str) -> None:
    one, two = SAME[what]
    assert of(one) == of(two)


def test_every_process_agrees(tmp_path: Path) -> None:
    """A store outlives the process: no address and no order of a set may enter."""
    (tmp_path / "sources.json").write_text(json.dumps([one for one, _ in DIFFERENT.values()]))
    program = (
        "import json, pathlib; from stillroom.code import digest\n"
        "for i, source in enumerate(json.loads(pathlib.Path('sources.json').read_text())):\n"
        "    space = {'__name__': 'typed_at_a_prompt'}\n"
        "    exec(compile(source, '', 'exec'), space)\n"
        "    print(digest(space['f']))\n"
    )
    found = []
    for seed in ("1", "2"):
        settings = {**os.environ, "PYTHONHASHSEED": seed}
        command = [sys.executable, "-c", program]
        done = subprocess.run(
            command, cwd=tmp_path, env=settings, capture_output=True, text=True, check=True
        )
        found.append(done.stdout.split())
    here = [of(one) for one, _ in DIFFERENT.values()]
    for what, *digests in zip(DIFFERENT, here, *found, strict=True):
        assert len(set(digests)) == 1, what


def test_cycles_end() -> None:
    """Functions that call one another, a class that holds itself, a set of what names the set."""
    source = (
        "def f(n): return g(n), ALL, A\ndef g(n): return f(n) + {}\n"
        "class A:\n def copy(self): return A().me\nA.me = A\nALL = {{f, g, A}}\n"
    )
    assert of(source.format(1)) == of(source.format(1)) != of(source.format(2))


def test_a_chain_longer_than_pythons_stack_is_followed() -> None:
    links = "".join(f"def f{i}(): return f{i + 1}()\n" for i in range(1500))
    ends = [f"{links}def f1500(): return {n}\nf = f0\n" for n in (1, 1, 2)]
    one, again, other = map(of, ends)
    assert one == again != other


def test_objects_without_end_cannot_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    class Endless:
        def __reduce__(self) -> Any:
            return Endless, (Endless(),)

    monkeypatch.setattr(code, "MAX_OBJECTS", 1000)
    one, two = Endless(), Endless()
    assert digest(one) == digest(one) != digest(two)


def test_enums_and_locks_of_cached_properties_are_read() -> None:
    class Kind(enum.Enum):
        A = 1

    class Lazy:
        @functools.cached_property
        def kind(self) -> Kind:
            return Kind.A

    first = digest(Lazy)
    Lazy().kind  # noqa: B018 - what an instance caches is not the class's
    assert digest(Lazy) == first


@pytest.mark.parametrize("what", ["C function", "lock", "its method", "generator"])
def test_what_cannot_be_read_is_never_equal_to_another(what: str) -> None:
    """A cache miss, not a wrong answer: each object has a digest of its own, for as long as it is
    there, and another in the next process."""
    lock = threading.Lock
    make: dict[str, Callable[[], Any]] = {
        "C function": lambda: ctypes.CDLL(None).abs,
        "lock": lock,
        "its method": lambda: lock().acquire,
        "generator": lambda: (i for i in ""),
    }
    made = [make[what]() for _ in range(2)]
    assert digest(made[0]) != digest(made[1])
    assert digest(made[0]) == digest(made[0])
    passing = [digest(functools.partial(max, make[what]())) for _ in range(20)]
    assert len(set(passing)) == 20, "an address was given twice"


def test_c_methods_of_ones_own_cannot_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    package, unread, own = code._package, [], ("collections", "array")
    monkeypatch.setattr(code, "_package", lambda m: None if m in own else package(m))
    monkeypatch.setattr(code, "_nonce", lambda same: unread.append(same.value) or "")
    digest(OrderedDict)
    assert all(vars(OrderedDict)[name] in unread for name in ("pop", "fromkeys", "__iter__"))
    digest(array)
    assert vars(array)["typecode"] in unread


def test_a_replaced_function_of_a_package_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """It says that it is the package's, and is found under that name."""
    source = "import functools, json\n@functools.wraps(json.dumps)\ndef f(): return {}"
    found = []
    for body in (1, 2):
        replaced = typed(source.format(body))["f"]
        with monkeypatch.context() as patch:
            patch.setattr(json, "dumps", replaced)
            found.append(digest(json.dumps))
    assert found[0] != found[1]


def test_stillrooms_own_code_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """The key of a stage has a digest of its files."""
    before = digest(Counting)
    monkeypatch.setattr(Method, "name", lambda self: "other")
    assert digest(Counting) == before


def test_a_class_that_is_used_stays_itself() -> None:
    """pydantic finishes a class, and functools remembers, when they are first used."""
    source = (
        "from __future__ import annotations\nimport functools\n"
        "from stillroom.config import Model\n"
        "class f(Model):\n    late: Late | None = None\n"
        "    @functools.cache\n    def g(self): return 1\n"
        "class Late(Model):\n    width: int = 1\n"
    )
    space = typed(source)
    before = digest(space["f"])
    space["f"].model_rebuild(_types_namespace=space)
    space["f"](late=space["Late"]()).g()
    assert digest(space["f"]) == before


@pytest.mark.parametrize(
    "body",
    [
        # beyond 256 constants the bytecode has prefixes between the steps of an import
        "".join(f" x = {i}.5\n" for i in range(300)) + " from typed_helper import g\n return g()",
        " import typed_helper as t\n return t.__dict__['g']()",
        " import typed_helper as t\n return vars(t)['g']()",
    ],
)
def test_modules_are_reached_in_other_ways(body: str, monkeypatch: pytest.MonkeyPatch) -> None:
    function = typed(f"def f():\n{body}")["f"]
    found = []
    for value in ("1", "1", "2"):
        helper = types.ModuleType("typed_helper")
        exec(f"def g(): return {value}", vars(helper))
        helper.__file__ = f"/{len(found)}/typed_helper.py"
        monkeypatch.setitem(sys.modules, "typed_helper", helper)
        found.append(digest(function))
    assert found[0] == found[1] != found[2]


# -- modules --------------------------------------------------------------------------------------
FILES = {
    "own/__init__.py": "",
    "own/nets.py": (
        "import json\nimport own.deep.ops\nfrom own import blocks as b\nfrom .blocks import Other\n"
        "def net(classes):\n"
        "    import torch\n    import lazy\n    from late import tail\n"
        "    try:\n        import absent_module\n    except ImportError:\n        pass\n"
        "    where = __name__, __file__\n"
        "    return b.Block(), own.deep.ops.act, lazy.first(), tail(), json.dumps\n"
        "def chosen(kind):\n    return getattr(b, kind)()\n"
        "def unrelated():\n    return 0\n"
    ),
    "own/blocks.py": (
        "class Base:\n    depth = 1\n"
        "class Block(Base):\n    def forward(self, kind):\n        return kind in {'p', 'q', 'r'}\n"
        "class Other:\n    width = 1\n"
    ),
    "own/deep/__init__.py": "",
    "own/deep/ops.py": "def act():\n    return 10\ndef sleep():\n    return 20\n",
    "lazy.py": (
        "import contextlib\n@contextlib.contextmanager\ndef first():\n    return 30\n"
        "def second():\n    return 40\n"
    ),
    "late.py": "def tail():\n    return 50\n",
}
EDITS = [  # file, old, new, whether `net` is another one then, and `chosen`
    ("own/nets.py", "return 0", "return 1", False, False),
    ("own/nets.py", "def unrelated", "# a comment\n\n\ndef unrelated", False, False),
    ("own/blocks.py", "depth = 1", "depth = 2", True, True),
    ("own/blocks.py", "'q'", "'s'", True, True),
    ("own/blocks.py", "width = 1", "width = 2", False, True),
    ("own/deep/ops.py", "return 10", "return 11", True, False),
    ("own/deep/ops.py", "return 20", "return 21", False, False),
    ("lazy.py", "return 30", "return 31", True, False),
    ("lazy.py", "return 40", "return 41", False, False),
    ("late.py", "return 50", "return 51", True, False),
]


def in_process(folder: Path, seed: int = 0) -> list[str]:
    """The digests of `net` and `chosen` in a new process, without torch."""
    program = (
        f"import sys; sys.path.insert(0, {str(folder)!r}); from own import nets; import json;"
        "from stillroom.code import digest; print(json.dumps([digest(nets.net),"
        "digest(nets.chosen)])); assert 'torch' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-B", "-c", program],
        env={**os.environ, "PYTHONHASHSEED": str(seed)},
        capture_output=True,
        text=True,
        check=True,
    )
    found: list[str] = json.loads(done.stdout)
    return found


def write(folder: Path, edit: tuple[str, str, str] = ("", "", "")) -> Path:
    for name, text in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text.replace(*edit[1:]) if name == edit[0] else text)
    return folder


def test_processes_agree_whatever_the_order_of_sets_and_the_folder(tmp_path: Path) -> None:
    places = [write(tmp_path / "here"), write(tmp_path / "there")]
    assert len({tuple(in_process(p, seed)) for p, seed in zip(places, (1, 2), strict=True)}) == 1


def test_edits_of_what_is_named_count_and_others_do_not(tmp_path: Path) -> None:
    before = in_process(write(tmp_path / "before"))
    for i, (*edit, net, chosen) in enumerate(EDITS):
        assert edit[1] in FILES[edit[0]]
        file, old, new = edit
        after = in_process(write(tmp_path / str(i), (file, old, new)))
        assert [a != b for a, b in zip(after, before, strict=True)] == [net, chosen], edit


def test_an_edit_after_the_import_does_not_count_before_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What runs is what was imported, whatever the file says by now."""
    monkeypatch.syspath_prepend(str(tmp_path))
    path = tmp_path / "edited_later.py"
    path.write_text("def f():\n    return 1\n")
    import edited_later  # type: ignore[import-not-found]

    before = digest(edited_later.f)
    path.write_text("def f():\n    return 22\n")
    assert digest(edited_later.f) == before


def test_packages_count_by_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their code is not read; a new release is other code; a file without a release is read."""
    site = tmp_path / "site-packages"
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def with_package(body: str, version: str | None) -> str:
        code._version.cache_clear()
        for name in ("packaged_net", "packaged_net.part"):
            sys.modules.pop(name, None)
        (site / "packaged_net").mkdir(parents=True, exist_ok=True)
        (site / "packaged_net" / "__init__.py").write_text("from packaged_net.part import g\n")
        (site / "packaged_net" / "part.py").write_text(f"def g(): return {body}\n")
        for old in site.glob("*.dist-info/*"):
            old.unlink()
        if version is not None:
            info = site / "packaged_net-1.dist-info"
            info.mkdir(exist_ok=True)
            (info / "METADATA").write_text(f"Name: packaged-net\nVersion: {version}\n")
            (info / "top_level.txt").write_text("packaged_net\n")
        return of("from packaged_net import g\ndef f(): return g()")

    one = with_package("1", "1.0")
    assert with_package("2", "1.0") == one
    assert with_package("1", "1.0+cpu") == one, "a build of the same release"
    assert with_package("1", "1.1") != one
    assert with_package("1", None) != with_package("2", None)


# -- a user's method ------------------------------------------------------------------------------
METHOD = """
from pydantic import Field
from stillroom.config import Model
from stillroom.methods.base import Method, Optim
def helper(): return 1
class Part(Model):
    width: int = 3
    def half(self): return self.width // 2
class Own(Method):
    kind: str = "own"
    part: Model = Part()
    optim: Optim = Optim()
    def start(self, ctx, rows): return helper()
    def loss(self, ctx, synth, it): yield
"""


def test_helpers_and_nested_models_of_a_method_are_in_its_code() -> None:
    edits = [("", ""), ("return 1", "return 2"), ("// 2", "// 4"), ("yield", "yield 1")]
    codes = [_foreign_code(typed(METHOD.replace(*edit))["Own"]())["code"] for edit in edits]
    assert len(set(codes)) == len(codes)
    again = typed(METHOD)
    assert _foreign_code(again["Own"]())["code"] == codes[0]
    assert _foreign_code(again["Own"](part=again["Part"](width=3)))["code"] == codes[0]
    assert _foreign_code(again["Own"](part=again["Part"](width=4)))["code"] != codes[0]


COUNT = [0]


class Counting(Method):
    """Names a global, which its own run changes."""

    def start(self, ctx: Any, rows: torch.Tensor) -> Synth:
        images = ctx.real_images(rows).requires_grad_()
        return Synth(images, rows // ctx.ipc, rows // ctx.ipc)

    def loss(self, ctx: Any, synth: Synth, it: int) -> Iterator[torch.Tensor]:
        COUNT[0] += 1
        yield synth.images.square().sum()


def test_a_run_does_not_change_its_own_key(bench: Any, store: Path) -> None:
    stage = Distil(
        method=Counting(),
        outer=Outer(steps=2, images=Optim(lr=0.1)),
        bench=bench.describe(),
        ipc=2,
        seed=0,
        arch=resolve("convnet1-w8"),
        numerics="float32",
        storage="float32",
        store=store,
    )
    made = obtain(Store(store), stage, Serial(), CPU)
    assert COUNT[0] > 0
    assert made.provenance["key"] == stage.key()
    assert Store(store).complete(stage.key())
    assert made.provenance["recipe"] == json.loads(json.dumps(stage.identity()))


# -- names in metadata ----------------------------------------------------------------------------
def test_a_set_made_with_users_code_is_judged_and_nothing_is_imported(
    bench: Any, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "user.py").write_text("raise SystemExit('imported')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    images = bench.preprocess.apply(bench.train.images[:2])
    labels = bench.train.labels[:2]
    assert isinstance(bench.preprocess, Preprocess)
    name = "user:Net.<locals>.make-0123456789ab"
    Distilled(images, labels, "hard", labels, bench.classes, bench.preprocess, arch=name).save(
        tmp_path / "set"
    )
    made = load(tmp_path / "set")
    assert (made.arch, student_of(made)) == (name, "auto")
    quick = find_protocol("quick@1").model_copy(update={"epochs": 1})
    asked = Asked(protocol=quick, archs=[student_of(made)], seeds=1)
    machine = Machine(threads=1)
    records = evaluate(tmp_path / "set", bench, asked, Store(store), machine, Session())
    assert {r.arch for r in records} == {"convnet1"}
    assert "user" not in sys.modules


# -- workers --------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Building(Stage):
    """Builds a network."""

    kind: ClassVar[str] = "building"
    sources: ClassVar[tuple[str, ...]] = ("rng.py",)

    arch: Arch

    def identity(self) -> dict[str, Any]:
        return {"arch": self.arch.name}

    def make(self, shard: int, out: Path, rt: Runtime) -> None:
        self.arch.build(2, 1, 4)

    def load(self, folder: Path) -> None:
        return None


class Locked:
    """A factory that holds what does not travel."""

    def __init__(self) -> None:
        self.lock = threading.Lock()

    def __call__(self, classes: int) -> torch.nn.Module:
        return torch.nn.Linear(4, classes)


def at_top_level(classes: int) -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, classes))


def local(name: str) -> Callable[..., torch.nn.Module]:
    def inner(classes: int) -> torch.nn.Module:
        return at_top_level(classes)

    class Inner(torch.nn.Linear):
        pass

    made: dict[str, Callable[..., torch.nn.Module]] = {
        "inner": inner,
        "Inner": Inner,
        "<lambda>": lambda classes: at_top_level(classes),
        "Locked": Locked(),
    }
    return made[name]


def run(factory: Callable[..., torch.nn.Module], out: Path) -> None:
    stage = Building(resolve(factory))
    Processes(2).run([Job(stage, i, out / str(i)) for i in (0, 1)], CPU)


@pytest.mark.parametrize("name", ["inner", "Inner", "<lambda>", "Locked"])
@pytest.mark.parametrize("bound", [False, True])
def test_what_does_not_travel_is_said_before_workers_start(
    name: str, bound: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(executor, "ProcessPoolExecutor", None)
    factory = functools.partial(local(name), bias=True) if bound else local(name)
    with pytest.raises(StillroomError, match=r"importable module, or use workers=1") as caught:
        run(factory, tmp_path)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)
    assert " at 0x" not in str(caught.value)
    one = Building(resolve(local("inner")))
    Processes(2).run([Job(one, 0, tmp_path / "one")], CPU)  # a single shard stays here
    assert (tmp_path / "one" / "done").is_file()


def test_what_does_not_travel_is_said_wherever_it_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(executor, "ProcessPoolExecutor", None)
    nets = (at_top_level, at_top_level, local("<lambda>"))
    jobs = [Job(Building(resolve(f)), 0, tmp_path / str(i)) for i, f in enumerate(nets)]
    with pytest.raises(StillroomError, match=r"<lambda> cannot be sent to worker processes"):
        Processes(2).run(jobs, CPU)


def test_what_was_typed_at_a_prompt_does_not_travel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It pickles by name, but a spawned process has another `__main__`."""
    main = types.ModuleType("__main__")
    exec("from torch import nn\ndef net(classes):\n    return nn.Linear(4, classes)", vars(main))
    monkeypatch.setitem(sys.modules, "__main__", main)
    monkeypatch.setattr(executor, "ProcessPoolExecutor", None)
    with pytest.raises(StillroomError, match=r"^net cannot be sent to worker processes"):
        run(main.net, tmp_path)


def test_models_are_read_by_their_fields() -> None:
    """Not by which of them were written down."""

    class Loose(Model, extra="allow"):
        width: int = 3

    assert digest(Loose()) == digest(Loose(width=3)) != digest(Loose(width=4))
    assert digest(Loose(more=1)) != digest(Loose(more=2))
    assert digest(io.StringIO("a")) != digest(io.StringIO("b"))
