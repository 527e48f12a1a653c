"""Who may import whom: a lower part never imports a higher one."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from stillroom.methods import METHODS

ROOT = Path(__file__).resolve().parents[2] / "src" / "stillroom"
# A part may import parts of a lower number; parts of one number may not import each other.
LEVELS = {
    "": 0,
    "errors": 0,
    "code": 1,
    "files": 1,
    "config": 1,
    "rng": 1,
    "cite": 1,
    "types": 2,
    "jpeg": 2,
    "session": 2,
    "progress": 3,
    "records": 3,
    "reported": 4,
    "tables": 8,
    "distilled": 3,
    "runtime": 3,
    "data": 4,
    "nets": 5,
    "artefacts": 6,
    "methods": 7,
    "evaluation": 7,
    "recipe": 8,
    "standing": 9,
    "interchange": 9,
    "run": 10,
    "challenge": 11,
    "comp_dd": 11,
    "report": 10,
    "api": 11,
    "cli": 12,
    "__main__": 13,
}
OWNERS = {  # library -> the only parts that may import it
    "torch.func": {"nets/ensemble.py", "nets/inner.py"},
    "yaml": {"recipe.py"},
    "matplotlib": {"report"},
    "ray": {"artefacts/executor.py"},
    "torch.distributed": {"artefacts/executor.py"},
    "multiprocessing": {"artefacts/executor.py"},
    "cyclopts": {"cli"},
    "rich": {"cli", "progress.py"},
    "jinja2": {"report"},
    "datasets": {"data/hub.py", "run/publish.py"},
    "torchvision": set(),  # by `optional_import` alone, in nets/zoo/libraries.py
    "timm": set(),
}


def imports(path: Path) -> list[tuple[str, bool]]:
    """(module, at top level) of every import of a file, type-checking ones left out."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    hidden = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and getattr(block.test, "id", "") == "TYPE_CHECKING"
        for node in ast.walk(block)
    }
    found = []
    for node in ast.walk(tree):
        if id(node) in hidden:
            continue
        if isinstance(node, ast.Import):
            found += [(alias.name, node in tree.body) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{a.name}" for a in node.names]
            found += [(name, node in tree.body) for name in names]
    return found


def part_of(module: str) -> str:
    pieces = module.split(".")
    return pieces[1] if len(pieces) > 1 and pieces[1] in LEVELS else ""


FILES = sorted(ROOT.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_imports_point_down(path: Path):
    relative = path.relative_to(ROOT)
    own = relative.parts[0].removesuffix(".py") if relative.parts[0] != "__init__.py" else None
    if own is None:
        return  # the package's own __init__ only forwards names
    assert own in LEVELS, f"{own} has no level; give it one"
    for module, _ in imports(path):
        if not module.startswith("stillroom"):
            continue
        other = part_of(module)
        if other == own or other == "":
            continue
        assert LEVELS[other] < LEVELS[own], f"{relative} imports {module}, which is not below it"


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_libraries_have_one_owner(path: Path):
    relative = path.relative_to(ROOT).as_posix()
    for module, _ in imports(path):
        for library, owners in OWNERS.items():
            if module == library or module.startswith(library + "."):
                assert any(relative.startswith(o) for o in owners), f"{relative} imports {module}"


def test_one_method_file_never_imports_another():
    methods = {Path(str(m.__module__).replace(".", "/")).name for m in METHODS.values()}
    assert len(methods) >= 5
    for name in methods:
        for module, _ in imports(ROOT / "methods" / f"{name}.py"):
            assert module.split(".")[-2:-1] != [name]
            assert not any(f"methods.{other}" in module for other in methods - {name}), module


def test_limits():
    """Lines <= 100, functions <= 60 lines, modules <= 400."""
    for path in FILES:
        text = path.read_text(encoding="utf-8")
        lines = text.splitlines()
        assert len(lines) <= 400, f"{path.name} has {len(lines)} lines"
        assert max(map(len, lines), default=0) <= 100, path.name
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                length = (node.end_lineno or 0) - node.lineno + 1
                assert length <= 60, f"{path.name}: {node.name} has {length} lines"


ARCHITECTURE = (ROOT.parents[1] / "docs" / "architecture.md").read_text(encoding="utf-8")


def block_after(heading: str) -> str:
    return ARCHITECTURE.split(heading, 1)[1].split("```text\n", 1)[1].split("```", 1)[0]


def test_the_layout_in_the_documents_is_the_layout():
    """Every module is in the block, and what is in the block exists."""
    told, folder = set(), ""
    for line in block_after("## Layout").splitlines():
        name = line.split("  ")[0] if not line.startswith(" ") else line.split()[0]
        if not name:
            continue
        if line.startswith("  "):
            told.add(folder + name)
        elif name.endswith("/"):
            folder = name
        else:
            told.add(name)
    own = {p.relative_to(ROOT).as_posix() for p in FILES if p.name != "__init__.py"}
    zoo = {name for name in own if name.startswith("nets/zoo/")}
    assert told == own - zoo | {"nets/zoo/"}


def test_the_order_in_the_documents_is_the_order():
    levels: dict[int, set[str]] = {}
    for name, level in LEVELS.items():
        if name:
            levels.setdefault(level, set()).add(name)
    told = [set(part.replace(",", " ").split()) for part in block_after("## Who").split(">")]
    assert told == [levels[level] for level in sorted(levels, reverse=True)]
