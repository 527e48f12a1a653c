"""The challenge: hostile submissions, the contract of its files, and its score."""

from __future__ import annotations

import io
import json
import os
import pickle
import stat
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from stillroom.challenge import score as scores
from stillroom.challenge.packing import packed
from stillroom.challenge.parts import ARCH, PARTS, PROTOCOL
from stillroom.challenge.reader import checked, notes_on, read
from stillroom.challenge.submission import read_part, read_submission
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


def lying() -> bytes:
    """A member that inflates to more than the archive's directory says."""
    data = bytearray(zipped(**{"cifar100.pt": bytes(100 * 2**20)}))
    at = data.rindex(b"PK\x01\x02")
    data[at + 24 : at + 28] = (1000).to_bytes(4, "little")
    return bytes(data)


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
    "a list of tensors": (lambda _: saved([images()]), "holds a list"),
    "sparse": (lambda _: saved(torch.zeros(CIFAR.shape).to_sparse()), "images.to_dense()"),
    "expanded": (lambda _: saved(torch.zeros(1).expand(CIFAR.shape)), "images.clone()"),
    "slice of more": (lambda _: saved(images().repeat(3, 1, 1, 1)[::3]), "images.clone()"),
    "complex": (lambda _: saved(torch.zeros(CIFAR.shape, dtype=torch.complex64)), "complex64"),
    "truncated": (lambda _: saved(images())[:10000], "not a whole checkpoint"),
    "empty": (lambda _: b"", "cifar100.pt: "),
    "text": (lambda _: b"please unzip me", "cifar100.pt: "),
    "too large": (lambda _: bytes(CIFAR.limit + 1), "larger than"),
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
        read(tmp_path / "s", CIFAR, tmp_path / "out")
    assert told in one_line(str(error.value))
    assert not (tmp_path / "ran").exists()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ARCHIVES)
def test_a_bad_archive_is_one_line(name: str, tmp_path: Path) -> None:
    make, told = ARCHIVES[name]
    path = tmp_path / "s.zip"
    path.write_bytes(make())
    with pytest.raises(StillroomError) as error:
        read(path, CIFAR, tmp_path / "out")
    assert told in one_line(str(error.value))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["s.zip"]


def test_links_and_pipes_are_refused(tmp_path: Path) -> None:
    (tmp_path / "real.pt").write_bytes(saved(images()))
    folder = tmp_path / "s"
    folder.mkdir()
    (folder / "cifar100.pt").symlink_to(tmp_path / "real.pt")
    with pytest.raises(StillroomError, match="is a symbolic link"):
        read(folder, CIFAR, tmp_path / "out")
    (folder / "cifar100.pt").unlink()
    os.mkfifo(folder / "cifar100.pt")
    with pytest.raises(StillroomError, match="not a regular file"):
        read(folder, CIFAR, tmp_path / "out")


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
        assert read(folder, CIFAR, tmp_path / "out") == []
    path = tmp_path / "s.zip"
    path.write_bytes(zipped(**{"sample_submission__cifar100.pt": saved(x.double())}))
    found = read_part(path, CIFAR)  # in a process of its own
    assert found.images is not None
    assert torch.equal(found.images, x)
    assert "not there" in read_part(tmp_path / "of", TINY).reason


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


def test_packing_converts_or_refuses(store: Path, tmp_path: Path) -> None:
    bench = stand_in(store)
    data = set_of(bench)

    def taken(name: str) -> torch.Tensor:
        return torch.load(tmp_path / name / "cifar100.pt", weights_only=True)

    assert packed(data, "set", tmp_path / "same", bench)[1] == []
    assert torch.equal(taken("same"), data.images)
    other = bench.preprocess  # fitted
    assert other != preprocess(CIFAR)
    _, notes = packed(set_of(bench, preprocess=other), "set", tmp_path / "fitted", bench)
    wanted = preprocess(CIFAR).apply(other.invert(data.images))
    torch.testing.assert_close(taken("fitted"), wanted, rtol=1e-5, atol=1e-5)
    assert notes == ["from fitted to the constants of the challenge"]
    backwards = set_of(bench, classes=tuple(reversed(bench.classes)))
    _, notes = packed(backwards, "set", tmp_path / "names", bench)
    assert torch.equal(taken("names"), data.images.view(100, 10, 3, 32, 32).flip(0).flatten(0, 1))
    assert "by name" in notes[0]
    soft = set_of(bench, labels=torch.zeros(1000, 100), label_kind="logits", lr=0.02)
    _, notes = packed(soft, "set", tmp_path / "soft", bench)
    assert "logits are left behind" in notes[0]
    assert "learned rate 0.02 is left behind" in notes[1]
    few = set_of(bench, of_class=torch.cat([torch.zeros(1), torch.arange(100)
                 .repeat_interleave(10)[:-1]]).long().sort().values)  # fmt: skip
    with pytest.raises(StillroomError, match="has 11 images; a submission has 10"):
        packed(few, "set", tmp_path / "few", bench)
    strange = set_of(bench, classes=(*bench.classes[:-1], "cat"))
    with pytest.raises(StillroomError, match="class 'cat' is none of own"):
        packed(strange, "set", tmp_path / "strange", bench)


def test_a_score_with_one_bad_part(store: Path, tmp_path: Path, capsys) -> None:
    """The command on a stand-in: learned classes, zero for the bad part, marked as not official."""
    bench = stand_in(store)
    submission, truth, out = tmp_path / "s", tmp_path / "t", tmp_path / "o"
    submission.mkdir(), truth.mkdir()
    write_sample(bench, CIFAR, submission, seed=0)
    (submission / "tinyimagenet.pt").write_bytes(b"no tensor")
    write_reference(bench, CIFAR, truth)
    line = ["challenge", "evaluate", "--submit_dir", str(submission), "--truth-dir", str(truth)]
    line += ["--output_dir", str(out), "--store", str(store), "--epochs", "2", "--runs", "2"]
    assert run([*line, "--plan", "--quiet"]) == 0
    told = capsys.readouterr().out
    assert "2 students to train" in told
    assert "zero: tinyimagenet.pt" in told
    assert not out.exists()
    assert run([*line, "--quiet"]) == 0
    told = capsys.readouterr().out
    assert "not official: 2 of 1000 epochs, 2 of 3 runs" in told
    text = (out / "scores.txt").read_text()
    first, second = text.splitlines()
    assert second == "not official: 2 of 1000 epochs, 2 of 3 runs"
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
