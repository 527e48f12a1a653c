"""Checkpoints: good ones into a network, every other refused with the network as it was."""

from __future__ import annotations

import hashlib
import http.server
import os
import pickle
import re
import threading
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from stillroom.errors import StillroomError
from stillroom.nets.zoo import build, known_names
from stillroom.nets.zoo import weights as module
from stillroom.nets.zoo.weights import PUBLISHED, fetch, load_weights, published
from stillroom.rng import global_rng

State = dict[str, Tensor]


def made(key: int, classes: int = 5) -> nn.Module:
    with global_rng(0, "weights", key):
        return build("wrn16-2", classes, 3, 16)


def trained(key: int) -> State:
    """A state whose buffers are not their defaults either."""
    net = made(key).train()
    with global_rng(0, "images", key):
        net(torch.randn(4, 3, 16, 16))
    return net.state_dict()


def same(net: nn.Module, state: State) -> bool:
    own = net.state_dict()
    return own.keys() == state.keys() and all(torch.equal(own[k], state[k]) for k in own)


# -- what is read --------------------------------------------------------------------------------
def bare(state: State, path: Path) -> Path:
    torch.save(state, path)
    return path


def wrapped(state: State, path: Path) -> Path:
    slots = {"momentum": [torch.zeros_like(v) for v in state.values()]}
    torch.save({"epoch": 3, "state_dict": state, "optimizer": slots, "best": 0.5}, path)
    return path


def of_model(state: State, path: Path) -> Path:
    torch.save({"model": state, "args": {"lr": 0.1}}, path)
    return path


def parallel(state: State, path: Path) -> Path:
    return bare({f"module.{key}": value for key, value in state.items()}, path)


def legacy(state: State, path: Path) -> Path:
    """As files were before PyTorch 1.6: not a zip."""
    torch.save(state, path, _use_new_zipfile_serialization=False)
    return path


def safe(state: State, path: Path) -> Path:
    save_file({key: value.contiguous() for key, value in state.items()}, path)
    return path


WRITERS: dict[str, Callable[[State, Path], Path]] = {
    "bare.pth": bare,
    "wrapped.pth.tar": wrapped,
    "model.pt": of_model,
    "parallel.bin": parallel,
    "legacy.pth": legacy,
    "safe.safetensors": safe,
}


@pytest.mark.parametrize("file", WRITERS)
def test_weights_and_buffers_are_those_of_the_file(file: str, tmp_path: Path) -> None:
    net, state = made(0), trained(1)
    parameters = list(net.parameters())
    load_weights(net, WRITERS[file](state, tmp_path / file))
    assert same(net, state)
    assert all(a is b for a, b in zip(parameters, net.parameters(), strict=True))
    assert all(p.requires_grad for p in net.parameters())


def test_values_take_the_networks_type(tmp_path: Path) -> None:
    state = trained(1)
    half = {k: v.half() if v.is_floating_point() else v for k, v in state.items()}
    net = made(0).double()
    load_weights(net, bare(half, tmp_path / "half.pth"))
    assert {p.dtype for p in net.parameters()} == {torch.float64}
    assert torch.equal(net.get_parameter("fc.weight"), half["fc.weight"].double())


def test_counters_may_be_absent(tmp_path: Path) -> None:
    """The published ResNet-18 is from before there were any."""
    state = trained(1)
    old = {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}
    net = made(0).train()
    net(torch.zeros(2, 3, 16, 16))
    load_weights(net, bare(old, tmp_path / "old.pth"))
    counters = {k: torch.zeros_like(v) for k, v in state.items() if k not in old}
    assert len(counters) == 13
    assert same(net, {k: counters.get(k, v) for k, v in state.items()})


# -- what is not ---------------------------------------------------------------------------------
def renamed(state: State) -> Any:
    state["fc.wieght"] = state.pop("fc.weight")
    return state


def extra(state: State) -> Any:
    return {**state, "head.weight": torch.zeros(2)}


def transposed(state: State) -> Any:
    return {**state, "conv1.weight": state["conv1.weight"].transpose(0, 1)}


def poisoned(value: float) -> Callable[[State], Any]:
    def spoil(state: State) -> Any:
        state["layer2.0.bn1.running_var"][3] = value
        return state

    return spoil


BAD: list[tuple[str, Callable[[State], Any], str]] = [
    ("missing", renamed, r"has no 'fc\.weight'; did you mean 'fc\.wieght'\?"),
    ("unexpected", extra, r"has 'head\.weight', which the network has not"),
    ("shape", transposed, r"'conv1\.weight' is \[3, 16, 3, 3\] and in the network \[16, 3, 3, 3\]"),
    ("nan", poisoned(float("nan")), r"'layer2\.0\.bn1\.running_var' holds NaN or infinite"),
    ("infinite", poisoned(float("-inf")), r"'layer2\.0\.bn1\.running_var' holds NaN or infinite"),
    ("too large for float32", lambda s: {**s, "fc.bias": torch.ones(5).double() * 1e39},
     r"'fc\.bias' holds NaN or infinite"),
    ("integers", lambda s: {**s, "fc.bias": torch.ones(5, dtype=torch.int64)},
     r"'fc\.bias' is of torch\.int64 and in the network of torch\.float32"),
    ("complex", lambda s: {**s, "bn.num_batches_tracked": torch.tensor(1j)},
     r"'bn\.num_batches_tracked' is of torch\.complex64"),
    ("sparse", lambda s: {**s, "fc.bias": torch.ones(5).to_sparse()}, r"'fc\.bias' is of"),
    ("expanded", lambda s: {**s, "fc.bias": torch.ones(1).expand(10**12)},
     r"'fc\.bias' is \[1000000000000\]"),
    ("empty", lambda s: {}, "holds a dict and no state dict"),
    ("one tensor", lambda s: s["fc.bias"], "holds a Tensor and no state dict"),
    ("numbers", lambda s: {**s, "fc.bias": [1.0] * 5}, r"'fc\.bias' is a list and no tensor"),
    ("no names", lambda s: dict(enumerate(s.values())), "'0' is a Tensor and no tensor"),
]  # fmt: skip


@pytest.mark.parametrize(("spoil", "words"), [b[1:] for b in BAD], ids=[b[0] for b in BAD])
def test_refused_and_nothing_copied(
    spoil: Callable[[State], Any], words: str, tmp_path: Path
) -> None:
    net = made(0)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    path = tmp_path / "bad.pth"
    torch.save(spoil(trained(1)), path)
    with pytest.raises(StillroomError, match=f"^{re.escape(str(path))}: .*{words}") as caught:
        load_weights(net, path)
    assert "\n" not in str(caught.value)
    assert same(net, before)


def test_other_classes_have_a_remedy(tmp_path: Path) -> None:
    path = bare(made(0, classes=7).state_dict(), tmp_path / "seven.pth")
    with pytest.raises(StillroomError, match=r"'fc\.weight' is \[7, 128\].*build it for the class"):
        load_weights(made(0), path)


@pytest.mark.parametrize("file", ["legacy.pth", "bare.pth", "safe.safetensors"])
@pytest.mark.parametrize("part", [0.0, 0.001, 0.5, 0.999])
def test_truncated(file: str, part: float, tmp_path: Path) -> None:
    path = WRITERS[file](trained(1), tmp_path / file)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * part)])
    net = made(0)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    with pytest.raises(StillroomError, match=r"not a whole checkpoint|or is damaged") as caught:
        load_weights(net, path)
    assert "\n" not in str(caught.value)
    assert same(net, before)


class Bomb:
    """What a hostile pickle is: a call that unpickling makes."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("around", [lambda bomb, s: bomb, lambda bomb, s: {"model": s, "a": bomb}])
def test_pickled_code_is_not_run(around: Any, zipped: bool, tmp_path: Path) -> None:
    path, target = tmp_path / "bomb.pth", tmp_path / "ran"
    torch.save(around(Bomb(target), trained(1)), path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(StillroomError, match=r"holds more than tensors \(posix\.mkdir\)") as caught:
        load_weights(made(0), path)
    assert not target.exists()
    assert "weights_only" not in str(caught.value), "torch's advice is to run the code"


def test_plain_pickle_and_other_files_are_refused(tmp_path: Path) -> None:
    target = tmp_path / "ran"
    for name, data in {
        "pickle.pth": pickle.dumps(Bomb(target)),
        "text.pth": b"weights\n" * 40,
        "page.safetensors": b"<html>not found</html>",
    }.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(StillroomError, match=f"{name}: (holds more than|not a whole)"):
            load_weights(made(0), tmp_path / name)
    assert not target.exists()
    with pytest.raises(StillroomError, match="no such file"):
        load_weights(made(0), tmp_path / "absent.pth")
    with pytest.raises(StillroomError, match=r"regular file|Is a directory"):
        load_weights(made(0), tmp_path)


def test_huge_file_is_refused_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hole of 8 GiB in a file; WRN-16-2 has 2.8 MB of weights."""
    path = tmp_path / "huge.pth"
    path.touch()
    os.truncate(path, 2**33)
    monkeypatch.setattr(torch, "load", lambda *a, **k: pytest.fail("it was read"))
    with pytest.raises(StillroomError, match=r"larger than 11 MiB, .* more than a WideResNet"):
        load_weights(made(0), path)


def test_inflating_file_is_refused(tmp_path: Path) -> None:
    """A zip of 16 KiB whose members are of 16 MiB."""
    path = bare(trained(1), tmp_path / "bare.pth")
    bomb = tmp_path / "bomb.pth"
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            data = old.read(name)
            new.writestr(name, bytes(2**24) if name.endswith("data/0") else data)
    assert bomb.stat().st_size < 2**22
    with pytest.raises(StillroomError, match="inflates to 19 MiB; not read"):
        load_weights(made(0), bomb)


# -- fetching ------------------------------------------------------------------------------------
BLOB = b"weights " * 1000
DIGEST = hashlib.sha256(BLOB).hexdigest()


class Server(http.server.ThreadingHTTPServer):
    requests: list[str]


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        assert isinstance(self.server, Server)
        self.server.requests.append(self.path)
        if self.path == "/absent.pth":
            self.send_error(404)
            return
        self.send_response(200)
        if self.path != "/endless.pth":
            self.send_header("Content-Length", str(len(BLOB)))
        self.end_headers()
        sent = BLOB[:100] if self.path == "/cut.pth" else BLOB
        self.wfile.write(sent if self.path != "/endless.pth" else sent * 400)

    def log_message(self, *_: object) -> None:
        return


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "127.0.0.1")
    with Server(("127.0.0.1", 0), Handler) as found:
        found.requests = []
        threading.Thread(target=found.serve_forever, daemon=True).start()
        yield found
        found.shutdown()


def url(server: Server, name: str) -> str:
    return f"http://127.0.0.1:{server.server_address[1]}/{name}"


@pytest.mark.parametrize("digits", [8, 10, 64])
def test_fetched_once(digits: int, server: Server, tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "weights"
    for _ in range(2):
        path = fetch(url(server, "net.pth"), DIGEST[:digits], folder)
        assert path == folder / "net.pth"
        assert path.read_bytes() == BLOB
    assert server.requests == ["/net.pth"]
    path.write_bytes(b"damaged")
    assert fetch(url(server, "net.pth"), DIGEST, folder).read_bytes() == BLOB
    assert [p.name for p in folder.iterdir()] == ["net.pth"], "no temporary file stays"


def test_file_urls(tmp_path: Path) -> None:
    source = tmp_path / "a net.pth"
    source.write_bytes(BLOB)
    with pytest.raises(StillroomError, match="not the https address"):
        fetch(source.as_uri(), DIGEST, tmp_path / "out")
    source = source.rename(tmp_path / "a-net.pth")
    assert fetch(source.as_uri(), DIGEST, tmp_path / "out").read_bytes() == BLOB
    with pytest.raises(StillroomError, match=r"could not be downloaded \(URLError: .*No such file"):
        fetch((tmp_path / "b.pth").as_uri(), DIGEST, tmp_path / "out")


@pytest.mark.parametrize(
    ("name", "digest", "words"),
    [
        ("net.pth", "0" * 8, f"its SHA-256 is {DIGEST} and should begin with 00000000; not kept"),
        ("absent.pth", DIGEST, r"could not be downloaded \(HTTPError: HTTP Error 404"),
        ("cut.pth", DIGEST, "its SHA-256 is|could not be downloaded"),
        ("endless.pth", DIGEST, r"larger than 2 MiB; not kept"),
        ("net.pth", DIGEST[:7], "give 8 to 64 hex digits"),
        ("net.pth", DIGEST.upper(), "give 8 to 64 hex digits"),
        ("", DIGEST, "not the https address of a file"),
        ("..", DIGEST, "not the https address of a file"),
    ],
)
def test_nothing_is_kept_of_what_is_refused(
    name: str, digest: str, words: str, server: Server, tmp_path: Path
) -> None:
    folder = tmp_path / "weights"
    with pytest.raises(StillroomError, match=words) as caught:
        fetch(url(server, name), digest, folder, limit=2**21)
    assert "\n" not in str(caught.value)
    assert not folder.exists(), "a folder that was not there is not left behind"


def test_a_name_stays_inside_the_folder(server: Server, tmp_path: Path) -> None:
    """Whatever it decodes to."""
    assert fetch(url(server, "%2e%2e%2fnet.pth"), DIGEST, tmp_path) == tmp_path / "net.pth"


def test_announced_size_is_refused_before_it_is_sent(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    real = module.urlopen

    def watched(*args: Any, **options: Any) -> Any:
        answer = real(*args, **options)
        content = answer.read
        answer.read = lambda n: read.append(n) or content(n)
        return answer

    monkeypatch.setattr(module, "urlopen", watched)
    with pytest.raises(StillroomError, match="larger than 0 MiB; not kept"):
        fetch(url(server, "net.pth"), DIGEST, tmp_path, limit=len(BLOB) - 1)
    assert read == []
    assert fetch(url(server, "net.pth"), DIGEST, tmp_path, limit=len(BLOB)).is_file()


def test_no_connection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "reachable", lambda url: False)
    with pytest.raises(StillroomError, match=r"f37072fd\.pth could not be downloaded \(no conn"):
        published("imagenet/resnet18", tmp_path)
    for address in ("ftp://a/b.pth", "data:,x", "/etc/passwd", "https://host"):
        with pytest.raises(StillroomError, match="not the https address of a file"):
            fetch(address, DIGEST, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_what_is_there_needs_no_connection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "reachable", lambda url: pytest.fail("it asked"))
    net = build("imagenet/shufflenet_v2_x0_5", 1000, 3, 64)
    path = bare(net.state_dict(), tmp_path / "shufflenetv2_x0.5-f707e7126e.pth")
    name, own = "imagenet/shufflenet_v2_x0_5", hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setitem(PUBLISHED, name, (path.name, own))
    assert published("ImageNet/ShuffleNet_V2_x0_5", tmp_path) == path
    with torch.no_grad():
        net.get_parameter("fc.bias").zero_()
    load_weights(net, path)
    assert float(net.get_parameter("fc.bias").detach().abs().max()) > 0


def test_published_weights_are_of_all_large_networks() -> None:
    assert list(PUBLISHED) == [name for name in known_names() if name.startswith("imagenet/")]
    for file, digest in PUBLISHED.values():
        head = re.fullmatch(r"[\w.]+-(?:owt-)?([0-9a-f]{8,10})\.pth", file)
        assert head
        assert digest.startswith(head[1])
        assert len(digest) == 64 or digest == head[1]
    with pytest.raises(StillroomError, match="'resnet18' has no published weights here; did you"):
        published("resnet18", Path())
