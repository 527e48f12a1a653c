"""What an assessment was asked, in words, for its records: which models, trained how."""

from __future__ import annotations

from collections.abc import Sequence

from stillroom.artefacts.originals import Original
from stillroom.artefacts.schooling import SCHOOLINGS, Schooling, find_schooling
from stillroom.tables import plural


def schooling_in_words(schooling: Schooling) -> str:
    """The name that `--originals` takes, else the nearest name with the fields that differ."""
    told = {name: _apart(schooling, known) for name, known in SCHOOLINGS.items()}
    for name, known in SCHOOLINGS.items():
        if known.epochs != schooling.epochs:
            scaled = find_schooling(f"{name}+epochs={schooling.epochs}")
            told[f"{name}+epochs={schooling.epochs}"] = _apart(schooling, scaled)
    nearest = min(told, key=lambda name: len(told[name]))
    return ", ".join([nearest, *told[nearest]])


def pool_in_words(stages: Sequence[Original]) -> str:
    """The models of one network: "3 models trained as default"."""
    if stages[0].weights:
        return "given weights"
    return f"{plural(len(stages), 'model')} trained as {schooling_in_words(stages[0].schooling)}"


def first_in_words(stages: Sequence[Original]) -> str:
    """The one model whose features are looked at: "model 0 trained as default"."""
    if stages[0].weights:
        return "given weights"
    return f"model {stages[0].index} trained as {schooling_in_words(stages[0].schooling)}"


def _apart(one: Schooling, other: Schooling) -> list[str]:
    """Fields of one that the other has otherwise, with their values."""
    fields = type(one).model_fields
    return [f"{n} {getattr(one, n)}" for n in fields if getattr(one, n) != getattr(other, n)]
