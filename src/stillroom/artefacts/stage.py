"""A stage: one cached step of work, identified by everything that its result depends on."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import stillroom
from stillroom.files import canonical, sha256, sha256_file
from stillroom.runtime import Runtime

COMMON = (
    "rng.py",
    "types.py",
    "distilled.py",
    "jpeg.py",
    "runtime.py",
    "data",
    "nets/zoo",
    "nets/ensemble.py",
    "nets/parts.py",
    "nets/precomputed.py",
    "nets/train.py",
    "nets/averaging.py",
    "nets/losses.py",
    "nets/optimisers.py",
    "nets/schedules.py",
    "nets/sharpness.py",
    "nets/sources.py",
    "artefacts/opened.py",
    "config.py",
)
"""Sources that every stage which runs networks depends on."""


class Stage(ABC):
    """One cached step. Subclasses are frozen dataclasses, picklable for worker processes.

    `version` is raised when the meaning of the output changes; `sources` are the parts of the
    package (files or folders below src/stillroom) that the output depends on.
    """

    kind: ClassVar[str]
    version: ClassVar[int] = 1
    sources: ClassVar[tuple[str, ...]]

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """Return, as JSON, everything that determines the output: fields and input keys."""

    def key(self) -> str:
        """Return `kind-<16 hex digits>`, a digest of identity, version and code."""
        return self.key_of(self.identity())

    def key_of(self, identity: dict[str, Any]) -> str:
        """Return the key that a stage of this kind and code has with some identity."""
        whole = {
            "kind": self.kind,
            "version": self.version,
            "code": code_digest(self.sources),
            "identity": identity,
        }
        return f"{self.kind}-{sha256(canonical(whole))[:16]}"

    def about(self) -> str:
        """Return a few words for `stillroom store list`."""
        return ""

    def needs(self) -> Sequence[Stage]:
        """Return the artefacts that `make` reads; they are made first."""
        return ()

    def shards(self) -> int:
        """Return the number of independent units of work."""
        return 1

    @abstractmethod
    def make(self, shard: int, out: Path, rt: Runtime) -> None:
        """Do one shard, writing into `out`; may resume from files that a killed run left there."""

    def finish(self, parts: list[Path], folder: Path) -> None:  # noqa: B027 - joining is optional
        """Join the shards' folders into `folder`, once, before it is published."""

    @abstractmethod
    def load(self, folder: Path) -> Any:
        """Read the published artefact."""


def with_needs(stages: Iterable[Stage], made: Callable[[Stage], bool]) -> list[Stage]:
    """The stages, and whatever those that are not made need, at any depth; shared needs again."""
    return [s for one in stages for s in (one, *(with_needs(needs_of(one, made), made)))]


def needs_of(stage: Stage, made: Callable[[Stage], bool]) -> Sequence[Stage]:
    """What a stage needs to be made; nothing if it is."""
    return () if made(stage) else stage.needs()


@functools.cache
def code_digest(sources: tuple[str, ...]) -> str:
    """Digest of the code that a stage depends on.

    In a checkout: of the files themselves, so that yesterday's code never answers for today's.
    In an installed release: of the version.
    """
    package = Path(stillroom.__file__).parent
    if "site-packages" in package.parts or "dist-packages" in package.parts:
        return sha256(f"stillroom {stillroom.__version__}")[:16]
    files: list[Path] = []
    for name in sources:
        path = package / name
        files += sorted(path.rglob("*.py")) if path.is_dir() else [path]
    return sha256(canonical([[f.relative_to(package).as_posix(), sha256_file(f)] for f in files]))[
        :16
    ]
