"""The `datasets` route, run on local parquet files."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stillroom.data import hub
from stillroom.data.decode import decode
from stillroom.data.raw import check
from stillroom.errors import StillroomError

Make = Callable[..., Path]
datasets = pytest.importorskip("datasets")


@pytest.fixture
def local(tmp_path: Path) -> Callable[..., Any]:
    """A loader that reads parquet files as `load_dataset` reads a repository."""

    def loader(**files: Path) -> Callable[[str, str | None], Any]:
        def load(repo: str, config: str | None) -> Any:
            names = {split: str(path) for split, path in files.items()}
            return datasets.load_dataset(
                "parquet", data_files=names, cache_dir=str(tmp_path / "hf")
            )

        return load

    return loader


def test_same_as_the_parquet_reader(
    tmp_path: Path, parquet: Make, local: Callable[..., Any], picture: Callable[..., Any]
) -> None:
    train = parquet(tmp_path / "train.parquet", [1, 0, 1], ["cat", "dog"])
    valid = parquet(tmp_path / "v.parquet", [0], ["cat", "dog"], first=3)
    raw = check(hub.read_hub("me/pets", "small", local(train=train, validation=valid)), "x")
    assert raw.classes == ("cat", "dog")
    assert raw.splits["train"].labels.tolist() == [1, 0, 1]
    assert raw.splits["test"].labels.tolist() == [0]
    found = list(raw.splits["train"].images())
    assert found[2][0] == "hf:me/pets train row 2"
    for seed, (name, blob) in enumerate(found):
        assert (decode(blob, name) == picture(seed)).all()
    again = hub.read_hub("me/pets", "small", local(train=train, validation=valid))
    other = hub.read_hub("me/pets", "large", local(train=train, validation=valid))
    assert raw.key == again.key != other.key


def test_unlabelled_test_is_passed_over(
    tmp_path: Path, parquet: Make, local: Callable[..., Any]
) -> None:
    train = parquet(tmp_path / "a.parquet", [0, 1], columns=("img", "fine_label"))
    blind = parquet(tmp_path / "b.parquet", [-1], columns=("img", "fine_label"))
    valid = parquet(tmp_path / "c.parquet", [1], columns=("img", "fine_label"))
    raw = hub.read_hub("x/y", None, local(train=train, test=blind, validation=valid))
    assert raw.splits["test"].labels.tolist() == [1]
    assert raw.classes == ("0", "1")


def test_missing_train_split(tmp_path: Path, parquet: Make, local: Callable[..., Any]) -> None:
    path = parquet(tmp_path / "a.parquet", [0])
    with pytest.raises(StillroomError, match=r"hf:x/y: no split 'train' \(has test\)"):
        hub.read_hub("x/y", None, local(test=path))


def test_paths_are_read_only_from_the_cache_of_datasets(
    tmp_path: Path, tree: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree(tmp_path / "photos" / "train", {"a": 1, "b": 1})

    def load(repo: str, config: str | None) -> Any:
        return datasets.load_dataset(
            "imagefolder", data_dir=str(tmp_path / "photos"), cache_dir=str(tmp_path / "hf")
        )

    monkeypatch.setattr(datasets.config, "HF_CACHE_HOME", str(tmp_path / "elsewhere"))
    raw = hub.read_hub("x/y", None, load)
    with pytest.raises(StillroomError, match="holds a path outside the cache of datasets"):
        list(raw.splits["train"].images())
    monkeypatch.setattr(datasets.config, "HF_CACHE_HOME", str(tmp_path))
    raw = hub.read_hub("x/y", None, load)
    assert [decode(p, n).shape for n, p in raw.splits["train"].images()] == [(8, 8, 3)] * 2


def test_names_are_parsed() -> None:
    assert hub.parse("hf:owner/name") == ("owner/name", None)
    assert hub.parse("hf:owner/name:cropped") == ("owner/name", "cropped")
    for bad in ("hf:", "hf:a/b/c", "hf:../x:y z", "hf:a b"):
        with pytest.raises(StillroomError, match="is not of the form hf:owner/name"):
            hub.parse(bad)


def test_a_failed_download_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(repo: str, config: str | None) -> Any:
        raise ConnectionError("no\nnetwork")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(StillroomError) as caught:
        hub.read_hub("owner/name", None)
    assert str(caught.value) == (
        "hf:owner/name could not be downloaded (ConnectionError: no network); check the name and "
        "the network, or pass a folder"
    )


@pytest.fixture
def closed() -> str:
    """The address of a port of this machine at which nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{taken.getsockname()[1]}"


@pytest.fixture
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http", "https", "all", "no"):
        monkeypatch.delenv(f"{name}_proxy", raising=False)
        monkeypatch.delenv(f"{name}_proxy".upper(), raising=False)


def test_without_a_network_the_error_comes_soon(
    closed: str, no_proxy: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The library alone tries for 25 seconds."""
    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", closed)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    began = time.monotonic()
    with pytest.raises(
        StillroomError, match=r"^hf:of-stillroom/nothing could not be downloaded \("
    ):
        hub.read_hub("of-stillroom/nothing", None)
    assert time.monotonic() - began < 4
    assert datasets.config.HF_HUB_OFFLINE is False


@pytest.mark.parametrize(("offline", "open_"), [(False, True), (False, False), (True, False)])
def test_offline_mode_lasts_as_long_as_the_call(
    offline: bool, open_: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    seen: list[bool] = []

    def reachable(url: str) -> bool:
        asked.append(url)
        return open_

    def load(repo: str, config: str | None) -> Any:
        seen.append(datasets.config.HF_HUB_OFFLINE)
        raise ConnectionError("no")

    monkeypatch.setattr(hub, "reachable", reachable)
    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", offline)
    with pytest.raises(StillroomError, match=r"\(ConnectionError: no\)"):
        hub.download("a/b", None)
    assert asked == ([] if offline else [datasets.config.HF_ENDPOINT])  # who is offline knows it
    assert seen == [not open_]
    assert datasets.config.HF_HUB_OFFLINE is offline


def test_reachable(closed: str, no_proxy: None) -> None:
    assert not hub.reachable(closed)
    assert not hub.reachable("https://nowhere.invalid")
    assert hub.reachable("no address at all")  # the library says what is wrong with it
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert hub.reachable(f"http://127.0.0.1:{server.getsockname()[1]}/x")


@pytest.mark.parametrize(
    ("four", "six", "reached"),
    [(0.2, "dead", True), ("dead", 0.2, True), ("silent", 0.2, True), ("silent", "dead", False)],
)
def test_slow_is_not_dead(
    four: float | str, six: float | str, reached: bool, no_proxy: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """One of two routes is enough, and neither a silent one nor a look-up can hold it up."""
    ended = threading.Event()

    def connects(host: str, port: int, family: socket.AddressFamily) -> bool:
        how = four if family == socket.AF_INET else six
        if isinstance(how, float):
            time.sleep(how)
        elif how == "silent":
            ended.wait(30)
        return isinstance(how, float)

    monkeypatch.setattr(hub, "_connects", connects)
    monkeypatch.setattr(hub, "PATIENCE", 1.0)
    began = time.monotonic()
    assert hub.reachable("https://huggingface.co") is reached
    assert time.monotonic() - began < 3
    ended.set()


def test_a_proxy_is_asked_in_place_of_the_hub(
    no_proxy: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert hub._gate("https://huggingface.co") == ("huggingface.co", 443)
    assert hub._gate("http://localhost:8080/hub") == ("localhost", 8080)
    for given, wanted in (
        ("http://me:secret@proxy.example:3128", ("proxy.example", 3128)),
        ("proxy.example:3128", ("proxy.example", 3128)),
        ("socks5://proxy.example", ("proxy.example", 1080)),
    ):
        monkeypatch.setenv("https_proxy", given)
        assert hub._gate("https://huggingface.co") == wanted
        assert hub._gate("http://huggingface.co") == ("huggingface.co", 80)
    monkeypatch.setenv("no_proxy", "huggingface.co")
    assert hub._gate("https://huggingface.co") == ("huggingface.co", 443)
