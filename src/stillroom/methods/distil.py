"""`Distil`: the stage that turns real data into sets, one shard a chunk."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from stillroom.artefacts.opened import nets_for, open_bench
from stillroom.artefacts.originals import Original
from stillroom.artefacts.snapshot import SNAPSHOT
from stillroom.artefacts.stage import COMMON, Stage
from stillroom.artefacts.store import Store
from stillroom.code import digest
from stillroom.data.benchmarks import reopen
from stillroom.distilled import WATCH, Distilled, Storage, load
from stillroom.files import canonical, read_json, write_atomic, write_json
from stillroom.methods.base import Method, Outer, Synth
from stillroom.methods.context import RunContext
from stillroom.methods.outer import outer_loop
from stillroom.methods.regularisers import Regulariser, Watch
from stillroom.nets.zoo import Arch
from stillroom.runtime import Numerics, Runtime


@dataclass(frozen=True)
class Distil(Stage):
    """One distillation: the recipe's part that decides the pixels.

    `bench` is what `Benchmark.describe` gave; `store` is where its decoded images lie, and is no
    part of the identity. `start` is where the images lie that these start from, if any, and
    `start_models` the networks that they were made with: this set was then made with them too.
    """

    kind: ClassVar[str] = "distilled"
    version: ClassVar[int] = 1
    sources: ClassVar[tuple[str, ...]] = (
        *COMMON,
        "artefacts/snapshot.py",
        "nets/hooks.py",
        "nets/inner.py",
        "nets/maps.py",
        "nets/verdicts.py",
        "methods",
    )

    method: Method
    outer: Outer
    bench: dict[str, Any]
    ipc: int
    seed: int
    arch: Arch
    numerics: Numerics
    storage: Storage
    store: Path = field(compare=False)
    start: Path | None = field(default=None, compare=False)
    start_key: str = ""
    start_models: tuple[tuple[str, int], ...] = ()
    regularisers: tuple[Regulariser, ...] = ()
    watch: Watch | None = None

    def identity(self) -> dict[str, Any]:
        """Everything that determines the pixels."""
        return {
            "method": {**self.method.keyed(), **self._code},
            "outer": self.outer.model_dump(mode="json"),
            "benchmark": self.bench["name"],
            "data": self.bench["digest"],
            "ipc": self.ipc,
            "seed": self.seed,
            "arch": self._arch_name(),
            "numerics": self.numerics,
            "storage": self.storage,
            "start": self.start_key,
            **({"start_models": self.start_models} if self.start_models else {}),
            **self._added(),
        }

    def _added(self) -> dict[str, Any]:
        """What regularisers and watching add to the identity: fields, and keys of what they want.

        Watching changes no pixel, but the curve that is kept beside them.
        """
        wants = {name: stage.key() for name, stage in self.wants().items()}
        if not wants and not self.regularisers:
            return {}
        fields = [
            {**r.model_dump(mode="json"), **code}
            for r, code in zip(self.regularisers, self._terms_code, strict=True)
        ]
        watch = {"watch": self.watch.model_dump(mode="json")} if self.watch else {}
        return {"regularisers": fields, "wants": wants, **watch}

    def wants(self) -> dict[str, Stage]:
        """The artefacts that must be in the store before this one is made."""
        found = self.method.stages(self.bench, self.arch, self.store)
        for slot, regulariser in enumerate(self.regularisers):
            found |= regulariser.stages(self.bench, self.arch, self.store, slot)
        if self.watch:
            taken = [s.index for s in found.values() if isinstance(s, Original)]
            taken += [index for _, index in self.start_models]
            free = 1 + max(taken, default=-1)
            found[WATCH] = Original(self.watch.schooling, self.bench, self.arch, free, self.store)
        return found

    def about(self) -> str:
        """What it makes, for a listing."""
        steps = self.method.steps(self.outer)
        ran = f", {steps} steps" if steps else ""
        return f"{self.label()} of {self.bench['name']}, ipc {self.ipc}{ran}, seed {self.seed}"

    def label(self) -> str:
        """What its rows are called: "dm", "dsa+clom"."""
        return "+".join(
            [self.method.name(), *(type(r).__name__.lower() for r in self.regularisers)]
        )

    @functools.cached_property
    def _code(self) -> dict[str, str]:
        # Once a stage: a run may change the globals that its method names, but not its key.
        return _foreign_code(self.method)

    @functools.cached_property
    def _terms_code(self) -> list[dict[str, str]]:
        return [_foreign_code(regulariser) for regulariser in self.regularisers]

    def _arch_name(self) -> str:
        return self.arch.name if self.method.uses_networks() else "none"

    def rows(self) -> list[Tensor]:
        """The chunks: rows of the whole set."""
        parts = self.method.chunks(len(self.bench["classes"]), self.ipc)
        return [torch.as_tensor(list(part)) for part in parts]

    def shards(self) -> int:
        """One a chunk."""
        return len(self.rows())

    def make(self, shard: int, out: Path, rt: Runtime) -> None:
        """Run the chunk's outer loop; write its images, labels and curve."""
        bench = open_bench(self.bench, self.store, rt)
        networks = nets_for(self.arch, bench, rt)
        wanted = _Wanted(self.wants(), self.store, rt)
        last = self.method.steps(self.outer)
        ctx = RunContext(bench, self.ipc, self.seed, rt, networks, shard, wanted, last)
        rows = self.rows()[shard]
        initial = None if self.start is None else load_file(self.start)["images"][rows]
        watch = self.watch.measures if self.watch else ()
        outcome = outer_loop(
            self.method, ctx, self.outer, rows, out, initial, self.regularisers, watch
        )
        for step, synth in [*outcome.kept.items(), (last, outcome.synth)]:
            tensors = {"rows": rows, **_tensors(synth)}
            write_atomic(out / f"step-{step:08d}.safetensors", save(tensors))
        lines = "".join(canonical(line) + "\n" for line in outcome.metrics)
        write_atomic(out / "metrics.jsonl", lines)
        write_json(out / "timing.json", {"seconds": outcome.seconds})

    def finish(self, parts: list[Path], folder: Path) -> None:
        """Join the chunks into one set a kept step: `steps/<n>/`, the last also named `final`."""
        names = sorted(p.name for p in parts[0].glob("step-*.safetensors"))
        for name in names:
            step = int(name.removeprefix("step-").removesuffix(".safetensors"))
            merged = _merge([load_file(part / name) for part in parts])
            self._distilled(merged, step).save(folder / "steps" / str(step))
        curves = [_lines(part / "metrics.jsonl") for part in parts]
        write_atomic(folder / "metrics.jsonl", _joined(curves))
        drifts = [(p / "drift").read_text() for p in parts if (p / "drift").is_file()]
        seconds = sum(float(read_json(part / "timing.json")["seconds"]) for part in parts)
        final = {"step": self.method.steps(self.outer), "drift": drifts, "seconds": seconds}
        write_json(folder / "final.json", final)
        for part in parts:  # not earlier: a shard killed before it is marked done goes on from it
            for path in (part / SNAPSHOT, *part.glob("step-*.safetensors")):
                path.unlink(missing_ok=True)

    def load(self, folder: Path) -> Distilled:
        """The set after the last step."""
        return load(folder / "steps" / str(self.method.steps(self.outer)))

    def _distilled(self, tensors: dict[str, Tensor], step: int) -> Distilled:
        # Notes (images left out, say) tell of the source's history, not of the pixels.
        described = {k: v for k, v in self.bench.items() if k != "notes"}
        classes = tuple(described.pop("classes"))
        labels = tensors["labels"]
        return Distilled(
            images=tensors["images"].float(),
            labels=labels if labels.dtype == torch.int64 else labels.float(),
            label_kind="hard" if labels.dtype == torch.int64 else "logits",
            of_class=tensors["of_class"],
            classes=classes,
            preprocess=self._preprocess(),
            augment=self.method.augment_name(),
            arch=self._arch_name(),
            lr=float(tensors["lr"]) if "lr" in tensors else None,
            storage=self.storage,
            data=described,
            provenance={
                "recipe": self.identity(),
                "label": self.label(),
                "key": self.key(),
                "step": step,
                "models": self._models(),
                "papers": [*self.method.papers, *(p for r in self.regularisers for p in r.papers)],
            },
        )

    def _models(self) -> dict[str, list[str | int]]:
        """Network (with the digest of given weights) and number of every trained one, by name."""
        found = {n: s for n, s in self.wants().items() if isinstance(s, Original)}
        own: dict[str, list[str | int]] = {n: [s.name, s.index] for n, s in found.items()}
        return own | {f"start/{i}": list(m) for i, m in enumerate(self.start_models)}

    def _preprocess(self) -> Any:
        return reopen(self.bench, self.store).preprocess


class _Wanted(Mapping[str, Any]):
    """Artefacts by name, each read when it is first asked for and kept by the session."""

    def __init__(self, stages: dict[str, Stage], store: Path, rt: Runtime) -> None:
        self.stages, self.store, self.rt = stages, Store(store), rt

    def __getitem__(self, name: str) -> Any:
        stage, cache = self.stages[name], self.rt.session.cache
        key = ("artefact", stage.key())
        if key not in cache:
            cache[key] = stage.load(self.store.folder(key[1]))
        return cache[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.stages)

    def __len__(self) -> int:
        return len(self.stages)


def _foreign_code(part: Method | Regulariser) -> dict[str, str]:
    """Where a user's own class is and what it does: the package's digest does not cover it."""
    cls = type(part)
    if cls.__module__.startswith("stillroom."):
        return {}
    return {"class": f"{cls.__module__}:{cls.__qualname__}", "code": digest(part)[:16]}


def _tensors(synth: Synth) -> dict[str, Tensor]:
    found = {"images": synth.images, "labels": synth.labels, "of_class": synth.of_class}
    if synth.lr is not None:
        found["lr"] = synth.lr
    return {k: v.detach().cpu().contiguous() for k, v in found.items()}


def _merge(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Chunks in any order -> tensors in row order; learned rates are averaged over chunks."""
    order = torch.cat([p["rows"] for p in parts]).argsort()
    merged = {k: torch.cat([p[k] for p in parts])[order] for k in ("images", "labels", "of_class")}
    if "lr" in parts[0]:
        merged["lr"] = torch.stack([p["lr"] for p in parts]).mean()
    return merged


def _lines(path: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _joined(curves: list[list[dict[str, float]]]) -> str:
    if len(curves) == 1:
        return "".join(canonical(line) + "\n" for line in curves[0])
    tagged = [{"chunk": i, **line} for i, curve in enumerate(curves) for line in curve]
    return "".join(canonical(line) + "\n" for line in tagged)
