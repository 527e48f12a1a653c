"""The evaluations that a recipe asks for: as `Asked`, and what they will cost."""

from __future__ import annotations

from collections.abc import Sequence

from stillroom.artefacts.opened import nets_for
from stillroom.artefacts.originals import Original
from stillroom.artefacts.schooling import Schooling
from stillroom.data.benchmarks import Benchmark
from stillroom.distilled import Distilled
from stillroom.errors import StillroomError
from stillroom.evaluation.protocol import TAUGHT
from stillroom.evaluation.published import find_protocol
from stillroom.methods.base import Method
from stillroom.nets.zoo import Arch
from stillroom.recipe import EvaluateSpec, load_recipe
from stillroom.run import machine as machines
from stillroom.run.distil import Plan
from stillroom.run.estimate import Cost, seconds, student_flops
from stillroom.run.fits import check_pieces, check_protocol, student_of
from stillroom.run.judging import Asked
from stillroom.run.options import Machine
from stillroom.run.prepare import cost_of_originals, originals
from stillroom.run.rows import RANDOM_DRAWS
from stillroom.run.teachers import Faculty
from stillroom.session import Session
from stillroom.tables import CORESETS


def asked_of(spec: EvaluateSpec, method: Method, made: Distilled) -> Asked:
    """What a recipe asks to be done with the set that was made by it."""
    own = student_of(made)
    return Asked(
        protocol=find_protocol(spec.protocol),
        archs=tuple(own if arch == "auto" else arch for arch in spec.archs),
        seeds=spec.seeds,
        baselines=spec.baselines,
        teachers=Faculty(archs=spec.teachers, schooling=_schooling(spec, method)),
    )


def _schooling(spec: EvaluateSpec, method: Method) -> Schooling | None:
    return getattr(method, "schooling", None) if spec.teachers else None


def protocol_of(row: str) -> str:
    """The protocol that a packaged row asks to be judged by; nothing if it asks for none."""
    asked = load_recipe(row)[0].get("evaluate") or [{}]
    return str(asked[0].get("protocol", ""))


def check_evaluations(specs: Sequence[EvaluateSpec], planned: Plan) -> None:
    """Refuse now what an evaluation would refuse after the distillation.

    Raises: StillroomError naming the evaluation and the remedy.
    """
    for i, spec in enumerate(specs):
        try:
            protocol = find_protocol(spec.protocol)
            check_protocol(protocol, planned.bench)
            archs = _archs(spec, planned)
            check_pieces(protocol, [nets_for(a, planned.bench, planned.rt) for a in archs])
        except StillroomError as error:
            raise StillroomError(f"evaluate.{i}: {error}") from None
        if protocol.labels in TAUGHT and not _teachers(spec, planned):
            raise StillroomError(
                f"evaluate.{i}: teachers label under {protocol.id}, and the method has none; name "
                "networks in its teachers"
            )


def _archs(spec: EvaluateSpec, planned: Plan) -> list[Arch]:
    bench, own = planned.bench, planned.stage.arch
    return [own if a == "auto" else machines.choose_arch(a, bench) for a in spec.archs]


def costs_of_evaluations(
    specs: Sequence[EvaluateSpec], planned: Plan, machine: Machine
) -> list[tuple[str, Cost]]:
    """What every evaluation of a recipe takes from nothing: by protocol.

    Students of the set and of its baselines, labels of teachers among that; and what those teachers
    take that the distillation does not train.
    """
    found = []
    for spec in specs:
        chosen, draws = (len(CORESETS), RANDOM_DRAWS) if spec.baselines else (0, 0)
        students = (1 + chosen) * spec.seeds + draws
        flops = _flops(spec, planned, students, 1 + chosen + draws)
        taken = seconds(flops, planned.rt) / machine.workers
        count = students * len(spec.archs)
        found.append((spec.protocol, Cost("student", count, count, flops, taken)))
        if teachers := _teachers(spec, planned):
            known = {s.key() for s in planned.stage.wants().values()}
            left = [one for one in teachers if one.key() not in known]
            if left:
                more, _ = cost_of_originals(left, machine, Session(), planned.store)
                found.append(("its teachers", more))
    return found


def _flops(spec: EvaluateSpec, planned: Plan, students: int, sets: int) -> float:
    """Of so many students of each network, on so many sets."""
    bench = planned.bench
    protocol, images = find_protocol(spec.protocol), planned.estimate.images
    archs = _archs(spec, planned)
    each = sum(
        student_flops(nets_for(a, bench, planned.rt).forward_flops(), protocol, bench, images)
        for a in archs
    )
    shown = students * len(archs) if protocol.labels == "teachers" else sets  # stored: once a set
    return students * each + shown * protocol.passes * images * _teaching(spec, planned, bench)


def _teaching(spec: EvaluateSpec, planned: Plan, bench: Benchmark) -> float:
    """Operations of all teachers for one image."""
    archs = {one.key(): one.arch for one in _teachers(spec, planned)}
    return sum(nets_for(arch, bench, planned.rt).forward_flops() for arch in archs.values())


def _teachers(spec: EvaluateSpec, planned: Plan) -> list[Original]:
    """Those that are named, else the observers of the method; none under other protocols."""
    if find_protocol(spec.protocol).labels not in TAUGHT:
        return []
    if spec.teachers:
        schooling = _schooling(spec, planned.stage.method) or Schooling()
        return list(originals(planned.bench, spec.teachers, 1, schooling, planned.store))
    wants = planned.stage.wants().items()
    return [s for name, s in wants if name.startswith("observer/") and isinstance(s, Original)]
