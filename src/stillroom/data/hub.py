"""Data sets by Hugging Face name, through the optional package `datasets`."""

from __future__ import annotations

import contextlib
import re
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

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
PATIENCE = 4.0  # seconds for a first connection; what is slower than that is no use for a download


def download(repo: str, config: str | None) -> Any:
    """Return the `DatasetDict` of a hub repository, downloaded once and then cached by `datasets`.

    Raises: StillroomError if `datasets` is not installed, or the repository cannot be had.
    """
    datasets: Any = optional_import("datasets", "data", f"hf:{repo}")
    try:
        with _offline_if_cut_off(datasets.config):
            return datasets.load_dataset(repo, config)
    except Exception as error:  # network, authentication, builder: each has its own exceptions
        why = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise StillroomError(
            f"hf:{repo} could not be downloaded ({why}); check the name and the network, or pass "
            "a folder"
        ) from error


@contextlib.contextmanager
def _offline_if_cut_off(config: Any) -> Iterator[None]:
    """Switch `datasets` to its own offline mode for a block if no connection can be opened.

    It would try for 25 seconds, and only then look into its cache or give up.
    """
    old = getattr(config, "HF_HUB_OFFLINE", True)  # a version without the switch is left alone
    if old or reachable(str(config.HF_ENDPOINT)):
        yield
        return
    config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        config.HF_HUB_OFFLINE = old


def reachable(url: str) -> bool:
    """Whether the server of `url`, or the proxy in front of it, takes a connection in time."""
    try:
        host, port = _gate(url)
    except ValueError:  # who is asked for a proper connection can say better what is wrong
        return True
    answers: SimpleQueue[bool] = SimpleQueue()

    def attempt(family: socket.AddressFamily) -> None:
        answers.put(_connects(host, port, family))

    families = (socket.AF_INET, socket.AF_INET6)
    for family in families:  # at once, so that a dead route of one kind does not hide the other
        # A look-up of a name cannot be broken off, and must not keep the process from ending.
        Thread(target=attempt, args=(family,), daemon=True).start()
    end = time.monotonic() + PATIENCE
    with contextlib.suppress(Empty):
        return any(answers.get(timeout=max(0.0, end - time.monotonic())) for _ in families)
    return False


def _gate(url: str) -> tuple[str, int]:
    """Host and port to which a connection for `url` is opened: its own, or a proxy's."""
    parts = urlsplit(url)
    proxies = getproxies()
    proxy = proxies.get(parts.scheme) or proxies.get("all")
    if proxy and parts.hostname and not proxy_bypass(parts.hostname):
        parts = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    if not parts.hostname:
        raise ValueError(f"no host in {url}")
    return parts.hostname, parts.port or {"https": 443, "http": 80}.get(parts.scheme, 1080)


def _connects(host: str, port: int, family: socket.AddressFamily) -> bool:
    with contextlib.suppress(OSError, UnicodeError):
        for *kind, _, address in socket.getaddrinfo(host, port, family, socket.SOCK_STREAM):
            with contextlib.suppress(OSError), socket.socket(*kind) as opened:
                opened.settimeout(PATIENCE)
                opened.connect(address)
                return True
    return False


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
