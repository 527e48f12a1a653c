"""The challenge: hostile submissions, the contract of its files, and its score."""

from __future__ import annotations

import io
import json
import os
import pickle
import stat
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from stillroom.challenge import score as scores
from stillroom.challenge import truth
from stillroom.challenge.packing import packed
from stillroom.challenge.parts import ARCH, PARTS, PROTOCOL, Part
from stillroom.challenge.reader import _written, checked, notes_on, read
from stillroom.challenge.submission import _own_code, _understood, read_part, read_submission
from stillroom.challenge.truth import preprocess, write_reference, write_sample
from stillroom.cli import run
from stillroom.data.benchmarks import Benchmark, from_arrays
from stillroom.distilled import Distilled
from stillroom.errors import StillroomError
from stillroom.evaluation.published import PROTOCOLS
from stillroom.evaluation.score import training_of
from stillroom.nets.train import rate
from stillroom.nets.zoo import build
from stillroom.rng import rng

CIFAR, TINY = PARTS["cifar100"], PARTS["tinyimagenet"]


def images(seed: int = 0) -> torch.Tensor:
    return torch.randn(CIFAR.shape, generator=rng(seed, "submission"))


def saved(value: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


class Runs:
    """A pickle that runs code."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def zipped(**members: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name.replace("__", "/"), data)
    return buffer.getvalue()


def huge_header() -> bytes:
    """A tensor that says it has 100 GB; torch's own file with another size in its pickle."""
    whole = zipfile.ZipFile(io.BytesIO(saved(torch.zeros(8))))
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for member in whole.infolist():
            data = whole.read(member)
            if member.filename.endswith("data.pkl"):
                data = data.replace(b"K\x08", b"\x8a\x05\x00\x00\x00\x00\x17")  # 98,784,247,808
            archive.writestr(member.filename, data)
    return buffer.getvalue()


def bomb() -> bytes:
    return zipped(**{"cifar100.pt": bytes(200 * 2**20)})


def linked() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        info = zipfile.ZipInfo("cifar100.pt")
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(info, "/etc/passwd")
    return buffer.getvalue()


def corrupt() -> bytes:
    """A member that is no deflate stream."""
    data = bytearray(zipped(**{"cifar100.pt": bytes(range(256)) * 4096}))
    data[60:400] = bytes(340)
    return bytes(data)


def lying() -> bytes:
    """A member that inflates to more than the archive's directory says."""
    data = bytearray(zipped(**{"cifar100.pt": bytes(100 * 2**20)}))
    at = data.rindex(b"PK\x01\x02")
    data[at + 24 : at + 28] = (1000).to_bytes(4, "little")
    return bytes(data)


def uninitialised() -> bytes:
    """A tensor of memory that nobody wrote, in some bytes."""
    return legacy(b"\x80\x02ctorch\nFloatTensor\n(M\xe8\x03K\x03K K tR.")  # 1000, 3, 32, 32


def polyglot() -> bytes:
    """A pickle that asks for memory, with an innocent archive at its end."""
    return legacy(b"\x80\x02c__builtin__\nbytearray\n(J\xff\xff\xff\x7ftR.") + saved(torch.zeros(1))


def two_archives() -> bytes:
    """One file, read as one archive by its end (Python) and another by its offset (torch)."""

    def archive(pickled: bytes) -> tuple[bytes, bytes, int]:
        """Members, directory, and how many there are."""
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as made:
            made.writestr("archive/data.pkl", pickled)
            made.writestr("archive/version", "3\n")
            made.writestr("archive/byteorder", "little")
        data = buffer.getvalue()
        count, size, offset = struct.unpack("<H2I", data[-12:-2])
        return data[:offset], data[offset : offset + size], count

    bad, listed, count = archive(b"\x80\x02cbuiltins\nbytearray\n(J\xff\xff\xff\x7ftR.")
    good, own, _ = archive(pickle.dumps({"a": 1}, 2))
    begin = len(bad) + len(listed)
    shift = begin + len(good) - len(bad)  # which Python adds to every offset
    directory, at = b"", 0
    while at < len(own):
        names = sum(struct.unpack("<3H", own[at + 28 : at + 34]))
        (offset,) = struct.unpack("<I", own[at + 42 : at + 46])
        moved = struct.pack("<i", begin + offset - shift)
        directory += own[at : at + 42] + moved + own[at + 46 : at + 46 + names]
        at += 46 + names
    end = struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, count, count, len(own), len(bad), 0)
    return bad + listed + good + directory + end


def attributed() -> bytes:
    """A parameter that carries functions of its own under the names of a tensor's."""
    found = torch.nn.Parameter(images())
    vars(found)["detach"] = torch.Tensor
    return saved(found)


def legacy(pickled: bytes) -> bytes:
    """The form before archives: magic number, version and system first, keys of storages last."""
    head = (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})
    return b"".join(pickle.dumps(one, 2) for one in head) + pickled + pickle.dumps([], 2)


FILES: dict[str, tuple[Callable[[Path], bytes], str]] = {
    "runs code": (lambda marker: saved(Runs(marker)), "holds more than tensors"),
    "runs code, bare pickle": (lambda marker: pickle.dumps(Runs(marker)), "cifar100.pt: "),
    "100 GB header": (lambda _: huge_header(), "cifar100.pt: "),
    "large view": (lambda _: saved(torch.zeros(1).expand(10**9, 100)), "shape [1000000000, 100]"),
    "integers": (lambda _: saved(images().long()), "torch.int64 images"),
    "NaN": (lambda _: saved(images().index_fill_(0, torch.tensor([3]), torch.nan)), "NaN"),
    "infinite": (lambda _: saved(images() / 0), "NaN or infinite"),
    "too few": (lambda _: saved(images()[:-1]), "shape [999, 3, 32, 32]"),
    "channels last": (lambda _: saved(images().permute(0, 2, 3, 1)), "shape [1000, 32, 32, 3]"),
    "a dict": (lambda _: saved({"images": images()}), "holds a dict"),
    "a tuple": (lambda _: saved((images(), torch.arange(1000))), "holds a tuple"),
    "a numpy array": (lambda _: saved(images().numpy()), "save torch.from_numpy(images)"),
    "a list of tensors": (lambda _: saved([images()]), "holds a list"),
    "sparse": (lambda _: saved(torch.zeros(CIFAR.shape).to_sparse()), "images.to_dense()"),
    "expanded": (lambda _: saved(torch.zeros(1).expand(CIFAR.shape)), "images.clone()"),
    "slice of more": (lambda _: saved(images().repeat(3, 1, 1, 1)[::3]), "images.clone()"),
    "complex": (lambda _: saved(torch.zeros(CIFAR.shape, dtype=torch.complex64)), "complex64"),
    "truncated": (lambda _: saved(images())[:10000], "not a whole checkpoint"),
    "empty": (lambda _: b"", "cifar100.pt: "),
    "text": (lambda _: b"please unzip me", "cifar100.pt: "),
    "too large": (lambda _: bytes(CIFAR.limit + 1), "larger than"),
    "memory as it was": (lambda _: uninitialised(), "fewer than the numbers of its tensor"),
    "zip behind a pickle": (lambda _: polyglot(), "(__builtin__.bytearray)"),
    "two archives": (lambda _: two_archives(), "something else lies before its archive"),
    "a tensor with attributes": (lambda _: attributed(), "holds a "),
    "4,000 dimensions": (lambda _: saved(torch.zeros([1] * 4000)), "shape [1, 1,"),
    "other part": (lambda _: saved(torch.zeros(20, 3, 64, 64)), "shape [20, 3, 64, 64]"),
    "zip in place of a tensor": (lambda _: zipped(**{"cifar100.pt": b"x"}), "cifar100.pt: "),
}
ARCHIVES: dict[str, tuple[Callable[[], bytes], str]] = {
    "../x": (lambda: zipped(**{"..__cifar100.pt": b"x"}), "leads out of the archive"),
    "absolute": (lambda: zipped(**{"__tmp__cifar100.pt": b"x"}), "leads out of the archive"),
    "nested": (
        lambda: zipped(**{"sub.zip": zipped(**{"cifar100.pt": b"x"})}),
        "is 0 times in the archive",
    ),
    "twice": (lambda: zipped(**{"a__cifar100.pt": b"x", "b__cifar100.pt": b"x"}), "is 2 times"),
    "bomb": (bomb, "inflates to 200 MiB"),
    "lying bomb": (lying, "cifar100.pt"),
    "corrupt": (lambda: corrupt(), "not a readable zip archive"),
    "symbolic link": (linked, "is a symbolic link"),
    "no archive": (lambda: b"PK\x03\x04 nonsense", "not a readable zip archive"),
    "truncated": (lambda: zipped(**{"cifar100.pt": saved(images())})[:5000], "not a readable zip"),
    "many members": (
        lambda: zipped(**{f"f{i}": b"" for i in range(10_001)}),
        "holds 10001 members",
    ),
}


def one_line(reason: str) -> str:
    assert "\n" not in reason
    assert 0 < len(reason) <= 300
    return reason


@pytest.mark.parametrize("name", FILES)
def test_a_bad_file_is_one_line(name: str, tmp_path: Path) -> None:
    make, told = FILES[name]
    (tmp_path / "s").mkdir()
    (tmp_path / "s/cifar100.pt").write_bytes(make(tmp_path / "ran"))
    with pytest.raises(StillroomError) as error:
        read(tmp_path / "s", CIFAR)
    assert told in one_line(str(error.value))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ARCHIVES)
def test_a_bad_archive_is_one_line(name: str, tmp_path: Path) -> None:
    make, told = ARCHIVES[name]
    path = tmp_path / "s.zip"
    path.write_bytes(make())
    with pytest.raises(StillroomError) as error:
        read(path, CIFAR)
    assert told in one_line(str(error.value))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["s.zip"]


def test_links_and_pipes_are_refused(tmp_path: Path) -> None:
    (tmp_path / "real.pt").write_bytes(saved(images()))
    folder = tmp_path / "s"
    folder.mkdir()
    (folder / "cifar100.pt").symlink_to(tmp_path / "real.pt")
    with pytest.raises(StillroomError, match="is a symbolic link"):
        read(folder, CIFAR)
    (folder / "cifar100.pt").unlink()
    (tmp_path / "other").mkdir()
    (tmp_path / "other/cifar100.pt").write_bytes(saved(images()))
    (folder / "res").symlink_to(tmp_path / "other")
    with pytest.raises(StillroomError, match=r"cifar100\.pt: res: is a symbolic link"):
        read(folder, CIFAR)
    (tmp_path / "link.zip").symlink_to(tmp_path / "real.pt")
    with pytest.raises(StillroomError, match=r"link\.zip: is a symbolic link; give the archive"):
        read_submission(tmp_path / "link.zip")
    (folder / "res").unlink()
    os.mkfifo(folder / "cifar100.pt")
    with pytest.raises(StillroomError, match="not a regular file"):
        read(folder, CIFAR)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*FILES, *ARCHIVES])
def test_in_a_process_of_its_own(name: str, tmp_path: Path) -> None:
    """Zero for that part, the other is read; under 2 GiB, nothing executed or written."""
    (tmp_path / "s").mkdir()
    good = saved(torch.randn(TINY.shape, generator=rng(0, "tiny")))
    if name in FILES:
        submission = tmp_path / "s"
        (submission / "cifar100.pt").write_bytes(FILES[name][0](tmp_path / "ran"))
        (submission / "tinyimagenet.pt").write_bytes(good)
    else:
        submission = tmp_path / "s" / "s.zip"
        submission.write_bytes(ARCHIVES[name][0]())
    before = sorted(tmp_path.rglob("*"))
    line = [sys.executable, "-c", PEAK, str(submission)]
    done = subprocess.run(line, stdout=-1, check=True, text=True)
    told = json.loads(done.stdout)
    one_line(told["reasons"][0])
    if name in FILES:
        assert told["reasons"][1] == ""
    else:
        one_line(told["reasons"][1])  # of the archive, or that it holds no such part
    assert told["peak"] < 2 * 2**30
    assert sorted(tmp_path.rglob("*")) == before


PEAK = """
import json, resource, sys
from pathlib import Path
from stillroom.challenge.submission import read_submission
found = read_submission(Path(sys.argv[1]))
peak = 1024 * resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
print(json.dumps({"reasons": [one.reason for one in found], "peak": peak}))
"""


def test_both_layouts_and_both_containers(tmp_path: Path) -> None:
    x = images()
    for below in ("", "res"):
        folder = tmp_path / f"of{below}"
        (folder / below).mkdir(parents=True)
        (folder / below / "cifar100.pt").write_bytes(saved(x))
        taken, notes = read(folder, CIFAR)
        assert torch.equal(taken, x)
        assert notes == []
    path = tmp_path / "s.zip"
    path.write_bytes(zipped(**{"sample_submission__cifar100.pt": saved(x.double())}))
    found = read_part(path, CIFAR)  # in a process of its own
    assert found.images is not None
    assert torch.equal(found.images, x)
    assert "not there" in read_part(tmp_path / "of", TINY).reason


def test_what_a_gpu_saved_is_read_without_one(tmp_path: Path) -> None:
    """As a pickle has it whose tensor lay on CUDA; only the name of the device differs."""
    x, buffer = images(), io.BytesIO()
    whole = zipfile.ZipFile(io.BytesIO(saved(x)))
    with zipfile.ZipFile(buffer, "w") as archive:
        for member in whole.infolist():
            data = whole.read(member)
            if member.filename.endswith("data.pkl"):
                assert data.count(b"X\x03\x00\x00\x00cpu") == 1
                data = data.replace(b"X\x03\x00\x00\x00cpu", b"X\x06\x00\x00\x00cuda:0")
            archive.writestr(member.filename, data)
    (tmp_path / "cifar100.pt").write_bytes(buffer.getvalue())
    found = read_part(tmp_path, CIFAR)
    assert found.images is not None
    assert torch.equal(found.images, x)


def test_a_reader_that_says_nonsense_takes_its_part_alone(tmp_path: Path) -> None:
    """Whatever the process prints, the part has one line of reason and nothing is raised."""
    (tmp_path / "cifar100.pt").write_bytes(saved(torch.zeros([1] * 4000)))
    assert one_line(read_part(tmp_path, CIFAR).reason).startswith("cifar100.pt: shape [1, 1,")
    (tmp_path / "torn").write_bytes(b"no tensors")
    for said in (b"", b"[]", b"{", b'{"notes": 3}', b'{"notes": []}', b"{}" + b" " * 20_000):
        found = _understood(CIFAR, 0, b"ready\n" + said, b"", tmp_path / "torn")
        assert found.images is None
        assert one_line(found.reason) == "cifar100.pt: its reader said nothing that can be used"
    stopped = _understood(CIFAR, -9, b"ready\n", b"", tmp_path / "torn")
    assert stopped.reason == "cifar100.pt: its reader was stopped (signal 9)"
    red = _understood(CIFAR, 0, b'ready\n{"reason": "\\u001b[31mred\\nline"}', b"", tmp_path)
    assert one_line(red.reason) == "?[31mred?line"


def test_a_fault_of_the_machine_is_no_zero(tmp_path: Path, monkeypatch) -> None:
    """Where no reader starts, or what it read cannot be written, nobody is scored."""
    for code, said, complaint, told in (
        (1, b"", b"Traceback\nImportError: no torch", "starts on this machine .ImportError"),
        (-9, b"", b"", "starts on this machine .signal 9"),
        (0, b'ready\n{"fault": "the disk is full"}', b"", "cifar100.pt: the disk is full; make"),
    ):
        with pytest.raises(StillroomError, match=told):
            _understood(CIFAR, code, said, complaint, tmp_path)
    full = _written(images(), [], tmp_path / "nowhere" / "out")
    assert full["fault"].startswith("what was read cannot be written")
    monkeypatch.setenv("LD_LIBRARY_PATH", "/nowhere")
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(StillroomError, match="no reader of submissions starts"):
        read_part(tmp_path, CIFAR)


def test_the_reader_is_of_this_very_package() -> None:
    """It works elsewhere, so that a relative path to the code would lead there."""
    first, *rest = _own_code(os.pathsep.join(["src", "", "/lib"]))
    assert Path(first) == Path(scores.__file__).resolve().parents[2]
    assert rest == [str(Path("src").absolute()), "/lib"]


def test_a_reader_does_not_outlive_a_stop(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "cifar100.pt").write_bytes(saved(images()))
    begun: list[subprocess.Popen[bytes]] = []

    class Stopped(subprocess.Popen):
        def communicate(self, *given, timeout=None):
            if timeout is not None:
                begun.append(self)
                raise KeyboardInterrupt
            return super().communicate(*given)

    monkeypatch.setattr(subprocess, "Popen", Stopped)
    with pytest.raises(KeyboardInterrupt):
        read_part(tmp_path, CIFAR)
    assert begun[0].returncode == -9


def test_a_reader_that_takes_too_long_is_killed(tmp_path: Path) -> None:
    (tmp_path / "cifar100.pt").write_bytes(saved(images()))
    found = read_part(tmp_path, CIFAR, seconds=0.01)
    assert found.reason == "cifar100.pt: took longer than 0 s to read"
    with pytest.raises(StillroomError, match="neither a folder nor a zip"):
        read_submission(tmp_path / "nowhere")


def test_what_looks_wrong_is_said() -> None:
    x = images()
    assert notes_on(x, CIFAR) == []
    assert "looks un-normalised" in notes_on(x.sigmoid(), CIFAR)[0]
    assert "pixels of 0 to 255" in notes_on(x * 60, CIFAR)[0]
    twice = torch.cat([x[:1], x[:-1]])
    assert "1 of 1000 images are there twice" in notes_on(twice, CIFAR)[0]
    assert checked(x.half(), CIFAR).dtype == torch.float32


def test_networks_and_schedule_are_those_of_the_rules() -> None:
    """Specification of evaluation, 1.2 and 1.3."""
    for part, wanted in ((CIFAR, 504_420), (TINY, 1_938_120)):
        net = build(ARCH, part.classes, 3, part.size)
        assert sum(p.numel() for p in net.parameters()) == wanted
    training = training_of(PROTOCOLS[PROTOCOL], 0.01)
    assert (training.passes, training.batch, training.reset_at_drop) == (1001, 256, True)
    assert [rate(training, e) for e in (0, 501, 502, 1000)] == pytest.approx(
        [0.01, 0.01, 0.001, 0.001]
    )
    assert (training.momentum, training.weight_decay) == (0.9, 5e-4)
    for part, steps in ((CIFAR, 4), (TINY, 8)):
        assert -(-part.shape[0] // training.batch) == steps


def stand_in(store: Path, part=CIFAR, per_class: int = 12) -> Benchmark:
    """A data set of the part's shape: every class has a grey level of its own."""
    count = part.classes * per_class
    labels = torch.arange(count) % part.classes
    gen = rng(0, "stand-in")
    x = torch.randint(0, 40, (count, 3, part.size, part.size), generator=gen)
    x = (x + 2 * labels.view(-1, 1, 1, 1) % 200).to(torch.uint8)
    names = tuple(f"class{c:03d}" for c in range(part.classes))
    return from_arrays(x, labels, x[::3], labels[::3], classes=names, name="own", store=store)


def test_reference_and_sample_are_what_the_evaluator_reads(store: Path, tmp_path: Path) -> None:
    bench = stand_in(store)
    write_reference(bench, CIFAR, tmp_path)
    found = torch.load(tmp_path / "cifar100_test.pt", weights_only=True)
    space = preprocess(CIFAR)
    assert torch.equal(found["images_val"], space.apply(bench.test.take(torch.arange(400))))
    assert torch.equal(found["labels_val"], bench.test.labels)
    write_sample(bench, CIFAR, tmp_path, seed=0)
    drawn = torch.load(tmp_path / "cifar100.pt", weights_only=True)
    assert checked(drawn, CIFAR).shape == CIFAR.shape
    pixels = (space.invert(drawn) * 255).round().to(torch.uint8)
    real = bench.train.take(torch.arange(len(bench.train)))
    pairs = zip(real, bench.train.labels, strict=True)
    train = {bytes(x.flatten().tolist()): int(y) for x, y in pairs}
    labels = [train[bytes(x.flatten().tolist())] for x in pixels]
    assert labels == [c for c in range(100) for _ in range(10)]  # class after class
    assert len({bytes(x.flatten().tolist()) for x in pixels}) == 1000
    with pytest.raises(StillroomError, match="tinyimagenet needs 200"):
        write_sample(bench, TINY, tmp_path, seed=0)


def set_of(bench: Benchmark, **more) -> Distilled:
    labels = torch.arange(100).repeat_interleave(10)
    x = images(1)
    given = {"images": x, "labels": labels, "label_kind": "hard", "of_class": labels,
             "classes": bench.classes, "preprocess": preprocess(CIFAR)}  # fmt: skip
    return Distilled(**{**given, **more})


def test_packing_converts_or_refuses(store: Path) -> None:
    bench = stand_in(store)
    data = set_of(bench)
    part, taken, notes = packed(data, "set", bench)
    assert (part, notes) == (CIFAR, [])
    assert torch.equal(taken, data.images)
    (note,) = packed(data, "set")[2]
    assert "which must be that of the test images (--cifar100 DATA puts them so" in note
    other = bench.preprocess  # fitted
    assert other != preprocess(CIFAR)
    _, taken, notes = packed(set_of(bench, preprocess=other), "set", bench)
    wanted = preprocess(CIFAR).apply(other.invert(data.images))
    torch.testing.assert_close(taken, wanted, rtol=1e-5, atol=1e-5)
    assert notes == ["from fitted to the constants of the challenge"]
    backwards = set_of(bench, classes=tuple(reversed(bench.classes)))
    _, taken, notes = packed(backwards, "set", bench)
    assert torch.equal(taken, data.images.view(100, 10, 3, 32, 32).flip(0).flatten(0, 1))
    assert "by name" in notes[0]
    soft = set_of(bench, labels=torch.zeros(1000, 100), label_kind="logits", lr=0.02)
    _, _, notes = packed(soft, "set", bench)
    assert "logits are left behind" in notes[0]
    assert "learned rate 0.02 is left behind" in notes[1]
    few = set_of(bench, of_class=torch.cat([torch.zeros(1), torch.arange(100)
                 .repeat_interleave(10)[:-1]]).long().sort().values)  # fmt: skip
    with pytest.raises(StillroomError, match="has 11 images; a submission has 10"):
        packed(few, "set", bench)
    strange = set_of(bench, classes=(*bench.classes[:-1], "cat"))
    with pytest.raises(StillroomError, match="class 'cat' is none of own"):
        packed(strange, "set", bench)


def test_pack_writes_both_parts_or_none(store: Path, tmp_path: Path, capsys) -> None:
    set_of(stand_in(store)).save(tmp_path / "one")
    line = ["challenge", "pack", str(tmp_path / "one")]
    out = ["--out", str(tmp_path / "out"), "--store", str(store)]
    for second, told in ((tmp_path / "one", "a second set for cifar100"), (tmp_path / "no", "no")):
        assert run([*line, str(second), *out]) == 2
        assert told in capsys.readouterr().err
        assert not (tmp_path / "out").exists()
    assert run([*line, *out]) == 0
    assert "tinyimagenet.pt is not there yet" in capsys.readouterr().out
    x = torch.load(tmp_path / "out/cifar100.pt", weights_only=True)
    assert torch.equal(x, images(1))
    assert run([*line, *out]) == 2
    assert "holds cifar100.pt already" in capsys.readouterr().err
    (tmp_path / "out/cifar100.pt").rename(tmp_path / "out/tinyimagenet.pt")  # packed before
    assert run([*line, *out]) == 0
    assert "is not there yet" not in capsys.readouterr().out
    (tmp_path / "file").write_text("x")
    data = ["--cifar100", "./nowhere"]
    for verb in (["pack", str(tmp_path / "one")], ["sample", *data], ["reference", *data]):
        assert run(["challenge", *verb, "--out", str(tmp_path / "file")]) == 2
        assert "file is a file; name another" in " ".join(capsys.readouterr().err.split())
        assert run(["challenge", *verb, "--out", str(tmp_path / "file/x")]) == 2
        assert "file is no folder; name another" in " ".join(capsys.readouterr().err.split())


def test_a_part_that_cannot_be_written_takes_the_other_along(tmp_path: Path, monkeypatch) -> None:
    def full(images: torch.Tensor, part: Part, folder: Path) -> None:
        (folder / part.file).write_bytes(b"some")
        if part == TINY:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(truth, "write_part", full)
    with pytest.raises(OSError, match="No space"):
        truth.write_parts(dict.fromkeys((CIFAR, TINY), torch.zeros(1)), tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_score_with_one_bad_part(store: Path, tmp_path: Path, capsys) -> None:
    """The command on a stand-in: learned classes, zero for the bad part, marked as not official."""
    bench = stand_in(store)
    submission, tests, out = tmp_path / "s", tmp_path / "t", tmp_path / "o"
    submission.mkdir(), tests.mkdir()
    write_sample(bench, CIFAR, submission, seed=0)
    (submission / "tinyimagenet.pt").write_bytes(b"no tensor")
    write_reference(bench, CIFAR, tests)
    line = ["challenge", "evaluate", "--submit_dir", str(submission), "--truth-dir", str(tests)]
    line += ["--output_dir", str(out), "--store", str(store), "--epochs", "2", "--runs", "2"]
    assert run([*line, "--plan", "--quiet"]) == 0
    told = capsys.readouterr().out
    assert "2 students to train" in told
    assert "zero: tinyimagenet.pt" in told
    assert not out.exists()
    assert run([*line, "--quiet"]) == 0
    told = capsys.readouterr().out
    why = "2 of 1000 epochs, 2 of 3 runs, 400 of 10000 test images of cifar100"
    assert f"not official: {why}" in " ".join(told.split())
    text = (out / "scores.txt").read_text()
    first, second = text.splitlines()
    assert second == f"not official: {why}"
    details = json.loads((out / "scores.json").read_text())
    mean = details["parts"]["cifar100"]["correct"]
    assert first == f"correct: {mean / 2}"
    assert details["parts"]["tinyimagenet"]["correct"] == 0.0
    assert "tinyimagenet.pt" in details["parts"]["tinyimagenet"]["reason"]
    assert len(details["parts"]["cifar100"]["runs"]) == 2
    assert not details["official"]
    assert mean > 0.02  # of 100 classes


def test_the_text_of_an_official_score(tmp_path: Path) -> None:
    """One line without a newline, as the platform reads it."""
    from stillroom.artefacts.store import Store
    from stillroom.run.options import Machine
    from stillroom.session import Session

    asked = scores.Evaluation((), {}, None, 3, "fast", Machine(), Store(tmp_path), Session())
    scored = [scores.Scored(CIFAR, (0.4, 0.41, 0.42)), scores.Scored(TINY, (0.18,) * 3)]
    scores.write(asked, scored, tmp_path)
    assert (tmp_path / "scores.txt").read_text() == f"correct: {(0.41 + 0.18) / 2}"
    assert json.loads((tmp_path / "scores.json").read_text())["official"]


def test_check_says_what_would_score_zero(store: Path, tmp_path: Path, capsys) -> None:
    write_sample(stand_in(store), CIFAR, tmp_path, seed=0)
    assert run(["challenge", "check", str(tmp_path)]) == 2
    told = capsys.readouterr()
    assert "cifar100.pt: [1000, 3, 32, 32], values from" in told.out
    assert "tinyimagenet.pt: would score zero: not there" in told.out
    assert "error: tinyimagenet.pt: 1 of 2 parts would score zero" in told.err


def test_limits_are_set_in_the_reader() -> None:
    code = ("import resource; from stillroom.challenge import reader; reader._limit(); "
            "print(resource.getrlimit(resource.RLIMIT_AS)[0])")  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code], stdout=-1, check=True, text=True)
    assert 1536 * 2**20 < int(done.stdout) < 8 * 2**30
