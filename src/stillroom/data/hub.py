"""Data sets by Hugging Face name, through the optional package `datasets`."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from stillroom.data.raw import TEST_NAMES, Payload, RawSplit, RawSplits
from stillroom.data.readers import (
    BATCH,
    IMAGE_COLUMNS,
    LABEL_COLUMNS,
    column_of,
    integer_labels,
    payloads,
)
from stillroom.errors import StillroomError, optional_import

Loader = Callable[[str, str | None], Any]
_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")


def download(repo: str, config: str | None) -> Any:
    """Return the `DatasetDict` of a hub repository, downloaded once and then cached by `datasets`.

    Raises: StillroomError if `datasets` is not installed, or the repository cannot be had.
    """
    datasets: Any = optional_import("datasets", "data", f"hf:{repo}")
    try:
        return datasets.load_dataset(repo, config)
    except Exception as error:  # network, authentication, builder: each has its own exceptions
        why = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise StillroomError(
            f"hf:{repo} could not be downloaded ({why}); check the name and the network, or pass "
            "a folder"
        ) from error


def parse(data: str) -> tuple[str, str | None]:
    """Split `hf:owner/name[:config]` into (owner/name, config).

    Raises: StillroomError if it is not of that form.
    """
    repo, _, config = data.removeprefix("hf:").partition(":")
    if not _NAME.fullmatch(repo) or (config and not _NAME.fullmatch(config)):
        raise StillroomError(f"data={data[:80]!r} is not of the form hf:owner/name[:config]")
    return repo, config or None


def read_hub(repo: str, config: str | None, load: Loader = download) -> RawSplits:
    """Read a hub data set with an image and an integer label column; images stay encoded.

    The test split is the first of test, val, valid, validation that has labels. `load` is the
    function that fetches it, so that a test can hand in local files.
    Raises: StillroomError if there is no train split, no such column, or no label.
    """
    loaded = load(repo, config)
    source = f"hf:{repo}"
    if not isinstance(loaded, dict) or "train" not in loaded:
        has = ", ".join(map(str, loaded)) if isinstance(loaded, dict) else type(loaded).__name__
        raise StillroomError(f"{source}: no split 'train' (has {has[:100]}); choose another config")
    splits = {"train": _split(loaded["train"], f"{source} train")}
    used = ["train"]
    for name in TEST_NAMES:
        if name in loaded and len(loaded[name]):
            test = _split(loaded[name], f"{source} {name}")
            if int(test.labels.max()) >= 0:
                splits["test"] = test
                used.append(name)
                break
    highest = max((int(s.labels.max()) for s in splits.values() if len(s)), default=-1)
    names = _names(loaded["train"]) or tuple(str(label) for label in range(highest + 1))
    prints = [[name, len(loaded[name]), loaded[name]._fingerprint] for name in used]
    return RawSplits(names, splits, ["hub", repo, config, *prints])


def _names(dataset: Any) -> tuple[str, ...]:
    label = column_of(dataset.column_names, LABEL_COLUMNS, "label", "train")
    return tuple(getattr(dataset.features[label], "names", None) or ())


def _split(dataset: Any, source: str) -> RawSplit:
    datasets: Any = optional_import("datasets", "data", source)
    image_column = column_of(dataset.column_names, IMAGE_COLUMNS, "image", source)
    label_column = column_of(dataset.column_names, LABEL_COLUMNS, "label", source)
    columns = dataset.select_columns([image_column, label_column])
    columns = columns.cast_column(image_column, datasets.Image(decode=False))
    table = columns.with_format("arrow")
    labels = integer_labels(table.select_columns([label_column])[:].column(0), source)
    # `datasets` names a file instead of bytes for folders of images; only its own cache is read,
    # so that a hostile set cannot pull a private picture of the user's into a distilled one.
    cache = Path(datasets.config.HF_CACHE_HOME).resolve()

    def images() -> Iterator[tuple[str, Payload]]:
        first = 0
        for batch in table.select_columns([image_column]).iter(batch_size=BATCH):
            for name, value in payloads(batch.column(0), first, source):
                if isinstance(value, str):
                    path = Path(value).resolve()
                    if not path.is_relative_to(cache):
                        raise StillroomError(
                            f"{name}: holds a path outside the cache of datasets and no image "
                            "bytes; pass the folder of images itself as --data"
                        )
                    yield name, path
                else:
                    yield name, value
            first += batch.num_rows

    return RawSplit(labels, images)
