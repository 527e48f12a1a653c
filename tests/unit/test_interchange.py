"""Files of other programs: EDF's configurations as recipes, tensors as a set."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
import yaml

from stillroom.cli import run
from stillroom.data.benchmarks import Benchmark
from stillroom.distilled import Distilled, load
from stillroom.errors import StillroomError
from stillroom.interchange.edf_config import convert
from stillroom.interchange.edf_keys import DEAD
from stillroom.interchange.tensors import imported
from stillroom.methods.trajectory_options import Labeller
from stillroom.recipe import load_recipe, validate
from stillroom.rng import rng
from stillroom.run.publish import export_tensors

DATM = {"dataset": "CIFAR10", "ipc": 10, "max_start_epoch": 20, "Iteration": 100, "eval_it": 30,
        "Sequential_Generation": False, "batch_syn": None}  # fmt: skip


def converted(family="datm", **more):
    value, notes = convert({**DATM, **more}, "some.yaml", family)
    return validate(value, "some.yaml"), "; ".join(notes)


def test_defaults_are_those_of_the_code() -> None:
    made, notes = converted()
    method = made.method
    assert notes == ""
    assert (method.name(), method.labels, method.init) == ("datm", "learned", "known")
    assert (method.inner, method.batch, method.experts) == (80, 100, 100)
    assert (method.window.first, method.window.last, method.window.grow) == (0, 20, 0)
    assert (made.outer.images.lr, made.outer.rate.lr, made.outer.labels.lr) == (1000, 1e-5, 2)
    assert made.outer.keep == (30, 60, 90)
    assert (made.zca, made.arch, made.evaluate[0].protocol) == (
        True,
        "convnet3",
        "datm@1+batch=256",
    )


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"family": "edf", "beta": "1.0s"}, "beta: 1.0s is a misprint, read as 1.0"),
        ({"loss_threshold_low": 0.5}, "loss_threshold_low: left out, nothing reads it"),
        ({"lr_imgs": 5}, "lr_imgs: left out, unknown; did you mean 'lr_img'?"),
        ({"family": "edf"}, "loss_threshold: not there, where its code leaves out everything; 0"),
        ({"family": "edf"}, "beta: not there, where its code stops at the first look; no look"),
        ({"beta": 1}, "beta: left out, DATM has none"),
        ({"family": "pad", "depth_ratio": 0.5, "interval": 5}, "interval: left out, PAD has none"),
        ({"family": "pad", "depth_ratio": 0.5, "loss_ratio": 0.5}, "left out, beside depth_ratio"),
        ({"family": "edf", "loss_ratio": 0.5}, "loss_ratio: left out, EDF has none"),
        ({"dsa": False}, "no augmentation of the student alone"),
        ({"dsa_strategy": "None"}, "no augmentation of the student alone"),
        ({"eval_mode": "N"}, "eval_mode: N"),
        ({"family": "pad", "depth_ratio": 0.5}, "first layers are left out"),
    ],
)
def test_what_was_repaired_or_left_out_is_said(more: dict, told: str) -> None:
    assert told in converted(**more)[1]


def test_images_a_class_that_no_key_tells_are_said() -> None:
    without = {key: value for key, value in DATM.items() if key != "ipc"}
    value, notes = convert(without, "some.yaml", "datm")
    assert value["ipc"] == 1
    assert notes == ["ipc: not in the file, read as 1, as the program reads it"]


@pytest.mark.parametrize("key", DEAD)
def test_dead_keys_change_nothing(key: str) -> None:
    made, notes = converted(**{key: 7})
    assert made == converted()[0]
    assert f"{key}: left out" in notes


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"texture": True}, "textures have no counterpart"),
        ({"Label_Model_Timestamp": 0}, "Label_Model_Timestamp=0 is no epoch of a training"),
        (
            {"Initialize_Label_With_Another_Model": True, "Initialize_Label_Model": "ConvNetD"},
            "Initialize_Label_Model='ConvNetD' is unknown",
        ),
        ({"dataset": "CIFAR"}, "did you mean 'CIFAR10'"),
        ({"model": "ConvNett"}, "did you mean 'ConvNet'"),
        ({"pix_init": "samples"}, "pix_init='samples' is unknown"),
        ({"lr_img": "fast"}, "lr_img='fast' is not a number"),
        ({"ipc": 1.5}, "ipc=1.5 is not a whole number"),
        ({"zca": "perhaps"}, "zca='perhaps' is neither true nor false"),
        ({"max_start_epoch": 0}, "max_start_epoch: Input should be greater"),
        ({"family": "edf", "loss_threshold": 1.0}, "loss_threshold=1 leaves nothing"),
        ({"Iteration": "1e999"}, "is too large"),
        (
            {"max_start_epoch": 100, "current_max_start_epoch": 100},
            "up to epoch 101 (window.last",
        ),
        (
            {"expansion_end_epoch": 0, "Sequential_Generation": True, "current_max_start_epoch": 9},
            "min_start_epoch, max_start_epoch, expansion_end_epoch: begin",
        ),
        ({"lr_y": 0}, "lr_y: Input should be greater than 0"),
        ({"num_eval": 0}, "num_eval: Input should be greater"),
        ({"Iteration": "9" * 400}, "is too large"),
        ({"Iteration": 10**7, "eval_it": 1}, "eval_it=1 keeps 10000000 sets"),
        ({"dsa_strategy": "colour_crop"}, "unknown word 'colour'"),
    ],
)
def test_what_has_no_counterpart_is_refused(more: dict, told: str) -> None:
    with pytest.raises(StillroomError) as error:
        converted(**more)
    assert told in str(error.value)


def test_who_labels_is_told() -> None:
    """The experts before their end; or another network, trained as experts are."""
    assert converted()[0].method.labeller == Labeller()
    made, _ = converted(Label_Model_Timestamp=20)
    assert made.method.labeller == Labeller(epoch=20)
    other = {"Initialize_Label_With_Another_Model": True, "Initialize_Label_Model": "ConvNetD4"}
    made, _ = converted(**other)
    assert made.method.labeller == Labeller(net="convnet4", schooling="datm")
    made, notes = converted(
        **other, Label_Model_Timestamp=7, Initialize_Label_Model_Dir="../buffer"
    )
    assert made.method.labeller == Labeller(net="convnet4", schooling="datm+stop=7")
    assert "Initialize_Label_Model_Dir: left out, the network that labels is trained" in notes


def test_crops_of_edf_are_wide_in_any_strategy() -> None:
    made, _ = converted(family="edf", dsa_strategy="crop_flip")
    assert made.method.augment == "dsa:widecrop_flip"
    assert converted(dsa_strategy="crop_flip")[0].method.augment == "dsa:crop_flip"
    assert converted(texture="false")[0] == converted()[0]


def test_nothing_gets_out_of_a_comment(tmp_path: Path) -> None:
    """Keys, values and the file's name are foreign; a live key of theirs could name code."""
    evil = "x\nregularisers: [{kind: 'antigravity:X'}]\n#"
    source = tmp_path / "a\nregularisers: [{kind: 'antigravity:Y'}].yaml"
    source.write_text(yaml.safe_dump({**DATM, evil: 1, "eval_mode": evil}))
    out = tmp_path / "out.yaml"
    assert run(["recipes", "convert", "datm", str(source), "--out", str(out)]) == 0
    assert "regularisers" in out.read_text()  # what was left out is told, in comments
    assert "regularisers" not in yaml.safe_load(out.read_text())
    assert "antigravity" not in sys.modules


def test_options_of_every_kind() -> None:
    made, _ = converted(
        max_files=2, max_experts=5, dsa="False", pix_init="real", eval_mode="M", num_eval=2,
        epoch_eval_train=500, batch_train=128, Sequential_Generation="True",
        current_max_start_epoch=5, expansion_end_epoch=1000,
    )  # fmt: skip
    assert (made.method.experts, made.method.augment, made.method.init) == (10, "none", "real")
    assert (made.method.window.begin, made.method.window.grow) == (5, 1000)
    spec = made.evaluate[0]
    assert spec.archs == ("convnet3", "alexnet", "vgg11", "resnet18")
    assert (spec.seeds, spec.protocol) == (2, "datm@1+epochs=500")


def test_the_command_writes_a_recipe_that_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = tmp_path / "IPC10.yaml", tmp_path / "mine.yaml"
    source.write_text(yaml.safe_dump({**DATM, "beta": "1.0s", "loss_threshold": 0.25}))
    assert run(["recipes", "convert", "edf", str(source), "--out", str(out)]) == 0
    assert "beta: 1.0s is a misprint" in capsys.readouterr().err
    again = validate(*load_recipe(str(out)))
    assert again.method == validate(convert(yaml.safe_load(source.read_text()), "x")[0], "x").method
    assert "# beta: 1.0s is a misprint, read as 1.0" in out.read_text()
    assert run(["recipes", "convert", "edf", str(source), "--out", str(out)]) == 2
    assert "exists already" in capsys.readouterr().err
    assert run(["recipes", "convert", "edf", str(source)]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["ipc"] == 10


def triple(folder: Path, **tensors) -> tuple[Path, ...]:
    for name, value in tensors.items():
        torch.save(value, folder / f"{name}.pt")
    return tuple(folder / f"{name}.pt" for name in tensors)


def images(count: int = 4) -> torch.Tensor:
    return torch.randn((count, 3, 8, 8), generator=rng(0, "foreign"))


def test_exported_tensors_come_back(bench: Benchmark, tmp_path: Path) -> None:
    labels = torch.tensor([[2.0, -1.0], [0.5, 0.4], [-3.0, 1.0], [0.0, 5.0]])
    made, _ = imported(
        bench, *triple(tmp_path, images=images(), labels=labels, lr=torch.tensor(0.02))
    )
    assert (made.label_kind, made.lr) == ("logits", pytest.approx(0.02))
    assert made.of_class.tolist() == [0, 0, 1, 1]
    export_tensors(made, tmp_path / "out")
    files = [tmp_path / "out" / f"{name}.pt" for name in ("images", "labels", "lr")]
    again, _ = imported(bench, *files)
    for name in ("images", "labels", "of_class", "lr"):
        torch.testing.assert_close(getattr(again, name), getattr(made, name), rtol=0, atol=0)


def test_rows_are_sorted_by_class_and_kinds_told_apart(bench: Benchmark, tmp_path: Path) -> None:
    x = images()
    made, _ = imported(bench, *triple(tmp_path, images=x, labels=torch.tensor([1, 0, 1, 0])))
    assert made.label_kind == "hard"
    assert made.of_class.tolist() == made.labels.tolist() == [0, 0, 1, 1]
    assert torch.equal(made.images, x[[1, 3, 0, 2]])
    soft = torch.tensor([[0.9, 0.1], [0.2, 0.8], [0.7, 0.3], [0.0, 1.0]])
    mixed, notes = imported(bench, *triple(tmp_path, images=x, labels=soft))
    assert (mixed.label_kind, mixed.of_class.tolist()) == ("probs", [0, 0, 1, 1])
    assert notes == ["labels: probs"]
    asked, _ = imported(bench, *triple(tmp_path, images=x, labels=soft), kind="logits")
    assert asked.label_kind == "logits"


def test_pixels_get_the_network_space(bench: Benchmark, tmp_path: Path) -> None:
    pixels = (images() * 40 + 128).clamp(0, 255).to(torch.uint8)
    labels = torch.tensor([0, 0, 1, 1])
    whole, _ = imported(bench, *triple(tmp_path, images=pixels, labels=labels))
    files = triple(tmp_path, images=pixels.float() / 255, labels=labels)
    same, _ = imported(bench, *files, space="pixels")
    assert torch.equal(whole.images, same.images)
    assert torch.equal(whole.images, bench.preprocess.apply(pixels))
    _, notes = imported(bench, *files)
    assert "if these are pixels, say --space pixels" in notes[-1]


@pytest.mark.parametrize(
    ("tensors", "told"),
    [
        ({"images": torch.zeros(4, 3, 9, 9)}, "needs [N, 3, 8, 8]"),
        ({"images": torch.zeros(4, 3, 8, 8, dtype=torch.int32)}, "float or uint8"),
        ({"images": torch.full((4, 3, 8, 8), torch.nan)}, "NaN"),
        ({"images": torch.zeros(1).expand(2**30, 3, 8, 8)}, "not one plain tensor"),
        ({"images": {"a": torch.zeros(1), "b": torch.zeros(1)}}, "not one plain tensor"),
        (
            {"labels": torch.tensor([0, 1, 2, 0])},
            "4 labels, one an image, each a class from 0 to 1",
        ),
        ({"labels": torch.tensor([0, 1])}, "one an image"),
        ({"labels": torch.zeros(4, 3)}, "[4, 2] finite numbers"),
        ({"lr": torch.tensor(-0.1)}, "one positive number"),
        ({"lr": torch.zeros(2)}, "one positive number"),
        ({"lr": torch.tensor(1e7)}, "below 1e+06"),
        ({"lr": 10**400}, "holds a int"),
        ({"images": torch.zeros(1, dtype=torch.uint8).expand(4, 3, 8, 8)}, "not one plain tensor"),
        ({"images": torch.zeros(4, 3, 8, 8, device="meta")}, "not one plain tensor"),
        ({"labels": torch.zeros(4, 2).to(torch.float8_e4m3fn)}, "is not what a set holds"),
        ({"labels": torch.full((4, 2), 1e300, dtype=torch.float64)}, "finite numbers"),
    ],
)
def test_wrong_tensors_are_refused(
    bench: Benchmark, tmp_path: Path, tensors: dict, told: str
) -> None:
    good = {"images": images(), "labels": torch.tensor([0, 0, 1, 1]), "lr": torch.tensor(0.1)}
    with pytest.raises(StillroomError) as error:
        imported(bench, *triple(tmp_path, **{**good, **tensors}))
    assert told in str(error.value)


class Runs:
    """A pickle that would run code."""

    def __reduce__(self):
        return print, ("this ran",)


def test_nothing_is_unpickled(
    bench: Benchmark, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = triple(tmp_path, images=Runs(), labels=torch.zeros(1))
    with pytest.raises(StillroomError, match="holds more than tensors"):
        imported(bench, *files)
    assert "this ran" not in capsys.readouterr().out
    (tmp_path / "images.pt").write_bytes(b"PK\x03\x04")
    with pytest.raises(StillroomError, match="not a whole checkpoint"):
        imported(bench, *files)


def test_the_command_makes_a_set_that_can_be_judged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gen = rng(0, "set")
    triple(
        tmp_path,
        images=torch.randn((10, 1, 8, 8), generator=gen),
        labels=5 * torch.eye(10),
        lr=torch.tensor(0.02),
    )
    out = tmp_path / "set"
    told = ["import", "--data", "digits", "--out", str(out), "--store", str(tmp_path / "store")]
    told += [f"--{n}-dir={tmp_path}/{f}.pt" for n, f in
             (("data", "images"), ("label", "labels"), ("lr", "lr"))]  # fmt: skip
    assert run(told) == 0
    assert (
        "10 images of 10 classes, logits labels, a learned rate of 0.02" in capsys.readouterr().out
    )
    made: Distilled = load(out)
    assert (made.arch, made.lr) == ("convnet2", pytest.approx(0.02))
    judged = ["evaluate", str(out), "--protocol", "datm@1+epochs=1", "--seeds", "1",
              "--store", str(tmp_path / "store"), "--quiet"]  # fmt: skip
    assert run(judged) == 0
    assert "imported" in capsys.readouterr().out
    assert run(told) == 2
    assert "is not empty" in capsys.readouterr().err


def test_a_configuration_given_to_distill_is_told_the_way(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "IPC1.yaml"
    path.write_text("dataset: ImageNet\nsyn_steps: 40\nexpert_epochs: 2\nlr_img: 1000\n")
    assert run(["distill", str(path)]) == 2
    assert f"stillroom recipes convert edf {path} --out mine.yaml" in capsys.readouterr().err
