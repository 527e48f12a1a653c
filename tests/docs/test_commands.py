"""No document names a command, a flag, a method, a recipe or a protocol that does not exist."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from stillroom.cli import app
from stillroom.evaluation.published import PROTOCOLS
from stillroom.methods import PRESETS
from stillroom.recipe import packaged

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(
    [*ROOT.glob("*.md"), *(p for p in (ROOT / "docs").rglob("*.md") if "_build" not in p.parts)]
)
OTHERS = {"--method", "--batch-rael"}  # of pytest; misspelt on purpose
FLAG = re.compile(r"(?<![\w-])--[a-z][a-z0-9.-]*[a-z0-9]\b")


def ids(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def commands(text: str) -> Iterator[str]:
    """Every `stillroom ...` of a page, in fences and in spans, without comments and neighbours."""
    fences = re.findall(r"```(?:sh|text|console)?\n(.*?)```", text, flags=re.S)
    spans = re.findall(r"(?<!`)`([^`]+)`(?!`)", re.sub(r"```.*?```", "", text, flags=re.S))
    lines = [line for fence in fences for line in fence.replace("\\\n", " ").splitlines()]
    for line in [*lines, *(" ".join(span.split()) for span in spans)]:
        for part in re.split(r"&&|\||;", line):
            found = re.match(r"\s*(?:\$ )?(?:[A-Z]+=\S+ )*(stillroom .+)", part)
            if found and "..." not in part:
                yield found[1].split(" #")[0].strip()


def known_flags() -> set[str]:
    found: set[str] = set()
    methods = [("distill", name) for name in PRESETS]
    verbs = [
        ("evaluate",),
        ("reproduce",),
        ("report",),
        ("export",),
        ("store", "gc"),
        ("challenge", "evaluate"),
        ("challenge", "sample"),
        ("challenge", "pack"),
        ("import",),
        ("comp-dd", "build"),
        ("comp-dd", "complexity"),
        ("comp-dd", "stats"),
        ("comp-dd", "evaluate"),
        ("recipes", "convert"),
        ("prepare", "experts"),
        ("prepare", "originals"),
        ("prepare", "relabels"),
        ("prepare", "statistics"),
        ("assess",),
        ("distill",),
        *methods,
    ]
    for verb in verbs:
        command = app
        for name in verb:
            command = command[name]
        for argument in command.assemble_argument_collection():
            found |= set(argument.names)
    return found | {"--help", "--version"}


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_every_command_parses(page: Path):
    for command in commands(page.read_text(encoding="utf-8")):
        tokens = shlex.split(command)[1:]
        names = tokens[:-1] if tokens[-1] in ("--help", "--version") else tokens
        if len(names) < 2 or names != tokens:  # a verb by its name, or help on it
            path = [str(name) for name in app.parse_commands(names)[0]]
            assert path == names, f"{ids(page)}: there is no {command!r}"
            continue
        try:
            app.parse_args(tokens, exit_on_error=False, print_error=False)
        except Exception as error:
            raise AssertionError(f"{ids(page)}: {command!r} does not parse: {error}") from error
        check_names(page, tokens)


def check_names(page: Path, tokens: list[str]) -> None:
    if tokens[0] == "distill":
        methods = {*PRESETS, *(row.name for row in packaged())}
        known = tokens[1] in methods or tokens[1].endswith(".yaml")
        assert known, f"{ids(page)}: {tokens[1]} is neither a method nor a recipe"
    if tokens[:2] == ["recipes", "show"]:
        assert tokens[2] in {row.name for row in packaged()}, tokens[2]
    if "--protocol" in tokens:
        assert tokens[tokens.index("--protocol") + 1] in PROTOCOLS


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_every_flag_exists(page: Path):
    """Flags in code, outside of `stillroom` commands too."""
    text = re.sub(r"<!--.*?-->", "", page.read_text(encoding="utf-8"), flags=re.S)
    if page.parent.name == "from-the-papers":  # the first column of its tables is theirs
        text = re.sub(r"^\| [^|]* \|", "", text, flags=re.M)
    code = " ".join(re.findall(r"`([^`]+)`", text))
    unknown = set(FLAG.findall(code)) - known_flags() - OTHERS
    assert not unknown, f"{ids(page)} names {sorted(unknown)}"


def test_pages_hold_commands():
    """The search above finds what it should."""
    found = [c for page in PAGES for c in commands(page.read_text(encoding="utf-8"))]
    assert len(found) > 30
    assert "stillroom distill dm --data photos/ --ipc 10 --out out/photos" in found
