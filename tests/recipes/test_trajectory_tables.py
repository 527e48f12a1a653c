"""Recipes of trajectory matching against the tables of the specification, read as they stand there.

The specification (spec/trajectory.md, 4.3, 4.4, 4.6, 5.4, 9) is no part of the project.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from stillroom.interchange.edf_config import convert
from stillroom.methods.trajectory_matching import TrajectoryMatching
from stillroom.recipe import find_row, read_yaml, validate
from stillroom.reported import reported

SPEC = Path(__file__).resolve().parents[3] / "shared/spec/trajectory.md"
DATA = {"C10": "cifar10", "C100": "cifar100", "Tiny": "tiny-imagenet"}
COMPLEX = [f"comp-dd/{c}-{s}" for c in ("bird", "car", "dog") for s in ("easy", "hard")]
SUBSETS = [*(f"image{n}" for n in ("nette", "woof", "meow", "yellow", "fruit", "squawk")), *COMPLEX]


@pytest.fixture(scope="module")
def spec() -> str:
    if not SPEC.is_file():
        pytest.skip("the specification, shared/spec/trajectory.md, is not here")
    return SPEC.read_text(encoding="utf-8")


def rows_after(text: str, start: str) -> list[list[str]]:
    """The cells of the first table that begins with a line that starts so."""
    lines = text[text.index(start) :].splitlines()
    table = []
    for line in lines:
        if not line.startswith("|"):
            break
        table.append([cell.strip().strip("*") for cell in line.strip().strip("|").split("|")])
    return [table[0], *table[2:]]


def recipe(name: str, bench: str, ipc: int):
    found = find_row(name, bench, ipc)
    assert found is not None, (name, bench, ipc)
    made = validate(read_yaml(found.path), found.name)
    assert isinstance(made.method, TrajectoryMatching)
    return made


def test_mtt(spec: str) -> None:
    table = rows_after(spec, "| Dataset | ipc | T | M | max_start |")
    assert len(table) == 11
    for data, ipc, inner, epochs, last, image, rate, first, batch, zca, arch in table[1:10]:
        assert method_of("mtt", DATA[data], int(ipc)).experts == 100
        made = recipe("mtt", DATA[data], int(ipc))
        method, outer, count = made.method, made.outer, int(ipc) * classes(DATA[data])
        assert (method.inner, method.window.epochs) == (int(inner), int(epochs))
        assert (method.window.first, method.window.last) == (0, int(last))
        assert (outer.images.lr, outer.rate.lr) == (float(image), float(rate))
        assert method.rate == float(first)
        assert method.batch == (count if batch == "–" else int(batch))
        assert made.zca == (zca == "yes")
        assert made.arch == ("convnet4" if "D4" in arch else "convnet3")
        assert (outer.steps, outer.images.momentum, method.labels) == (5000, 0.5, "hard")


def test_ftd(spec: str) -> None:
    table = rows_after(spec, "| | C10 1/10/50 | C100 1/10/50 | Tiny 1/10 |")
    told = {row[0]: [spread(cell, n) for cell, n in zip(row[1:], (3, 3, 2), strict=True)]
            for row in table[1:]}  # fmt: skip
    where = [("cifar10", (1, 10, 50)), ("cifar100", (1, 10, 50)), ("tiny-imagenet", (1, 10))]
    for at, (bench, sizes) in enumerate(where):
        for i, ipc in enumerate(sizes):
            made = recipe("ftd", bench, ipc)
            cell = {name: values[at][i] for name, values in told.items()}
            method = made.method
            assert method.inner == int(cell["T"])
            assert (method.window.epochs, method.window.last) == (
                int(cell["M"]),
                int(cell["max_start"]),
            )
            count = ipc * classes(bench)
            assert method.batch == (count if cell["batch_syn"] == "–" else int(cell["batch_syn"]))
            assert made.outer.images.lr == float(cell["lr_img"])
            assert made.outer.rate.lr == float(cell["lr_lr"])
            assert method.rate == float(cell["lr_teacher"])
            assert method.schooling.alpha == float(cell["GSAM α"])
            assert method.ema == float(cell["EMA decay"])
            assert made.zca
            assert (method.experts, made.outer.steps, method.labels) == (100, 5000, "hard")


def test_mtt_and_ftd_on_imagenet_subsets(spec: str) -> None:
    """The last row of MTT's table, and what FTD's author says of ten classes."""
    row = rows_after(spec, "| Dataset | ipc | T | M | max_start |")[10]
    assert row[:5] == ["ImageNet 10-cls", "1/10", "20", "2", "10"]
    assert row[5].startswith("1e5 (author")
    assert row[6:] == ["1e-6", ".01", "–/20", "no", "D5"]
    told = " ".join(spec.split())
    assert ("no ZCA, α=1, ρ=.01, T=20, M=2, max_start=10, lr_img 1e4, lr_lr 1e-4, lr_teacher "
            ".01/.001, EMA .999, batch_syn 64") in told  # fmt: skip
    for bench in SUBSETS[:6]:
        for i, ipc in enumerate((1, 10)):
            for name, image, rate, batch in (
                ("mtt", 1e5, 1e-6, (10, 20)[i]),
                ("ftd", 1e4, 1e-4, 64),
            ):
                made = recipe(name, bench, ipc)
                method, window = made.method, made.method.window
                assert (method.inner, window.epochs, window.first, window.last) == (20, 2, 0, 10)
                assert (made.outer.images.lr, made.outer.rate.lr) == (image, rate)
                assert (method.batch, made.zca, made.arch) == (batch, False, "convnet5")
            assert (method.ema, method.schooling.alpha, method.rate) == (0.999, 1, (0.01, 0.001)[i])


def test_tesla(spec: str) -> None:
    told = " ".join(spec.split())
    assert ("C10 ipc1 T=50 M=2 max_start=5 lr_img 1000 lr_lr 1e-7; C100 ipc50 T=80 M=2 "
            "max_start=40 lr_img 1000 lr_lr 1e-5 batch_syn 125 ZCA; ImageNet-1K (64²) ipc1 "
            "ConvNetD4 T=10 M=3 max_start=10 lr_img 1e4 lr_lr 1e-4 batch_syn 100 "
            "`teacher_label`") in told  # fmt: skip
    for bench, ipc, inner, epochs, last, image, rate, batch, zca, labels, experts in (
        ("cifar10", 1, 50, 2, 5, 1e3, 1e-7, 10, False, "hard", 100),
        ("cifar100", 50, 80, 2, 40, 1e3, 1e-5, 125, True, "hard", 100),
        ("imagenet-1k", 1, 10, 3, 10, 1e4, 1e-4, 100, False, "assigned", 50),
    ):
        made = recipe("tesla", bench, ipc)
        method, window = made.method, made.method.window
        assert (method.inner, window.epochs, window.last) == (inner, epochs, last)
        assert (made.outer.images.lr, made.outer.rate.lr, method.batch) == (image, rate, batch)
        assert (made.zca, method.labels, method.experts) == (zca, labels, experts)
        assert method.engine == "tesla"


@pytest.mark.parametrize("name", ["datm", "pad"])
def test_datm_and_what_pad_changes(spec: str, name: str) -> None:
    """PAD's differences are those of 4.7."""
    table = rows_after(spec, "| DATM | T | M | batch_syn |")
    assert len(table) == 13
    for key, inner, epochs, batch, image, label, rate, gate, _, starts, *_ in table[1:]:
        data, _, size = key.partition(" ")[0].partition("-")
        bench, ipc = DATA[data], int(size)
        made = recipe(name, bench, ipc)
        method = made.method
        first, begin, last, grow = stretch(starts)
        share = 0.0
        if name == "pad":
            share = {"C10-1": 0.0, "C100-50": 0.0, "C10-50": 0.25}.get(f"{data}-{size}", 0.5)
            if key == "C10-50":
                epochs = "3"
            begin, last, grow = {
                "C10-500": (60, 70, 2000),
                "C100-1": (20, 30, 1000),
            }.get(key, (begin, last, grow))
        assert (method.inner, method.window.epochs) == (int(inner), int(epochs))
        window = method.window
        assert (window.first, window.begin, window.last, window.grow) == (first, begin, last, grow)
        assert made.outer.images.lr == float(image)
        assert made.outer.labels is not None
        assert (made.outer.labels.lr, made.outer.labels.momentum) == (float(label), 0.9)
        assert (made.outer.rate.lr, method.gate) == (float(rate), float(gate))
        given = 500 if (name, key) == ("pad", "C10-10") else int(batch)
        assert method.batch == min(given, ipc * classes(bench))
        assert method.parameters.share == share
        assert method.parameters.drop == ("shallow" if share else "none")
        assert method.init == ("real" if "`real`" in key else "known")
        assert made.zca
        assert (method.schooling.order.scores == "grand") == (name == "pad")


@pytest.mark.parametrize("ipc", [1, 10, 50])
def test_edf_on_imagenet_subsets(spec: str, ipc: int) -> None:
    part = spec[spec.index(f"IPC{ipc} –") :]
    table = rows_after(part, "| | nette | woof |")
    told = {row[0].partition(" ")[0]: row[1:] for row in table[1:]}
    for i, bench in enumerate(SUBSETS):
        made = recipe("edf", bench, ipc)
        method, window = made.method, made.method.window
        assert made.outer.labels is not None
        assert made.outer.labels.lr == (5.0 if ipc == 50 else float(told["lr_y"][i]))
        assert method.gate == float(told["threshold"][i])
        if ipc == 50:
            assert (method.inner, method.batch) == (int(told["T"][i]), int(told["batch_syn"][i]))
            assert made.outer.images.lr == float(told["lr_img"][i])
            assert window.grow == int(told["E_x"][i])
            assert method.areas.every == int(told["interval"][i])
            assert method.parameters.share == float(told["α"][i])
        else:
            assert (method.inner, method.batch) == (40, 10 * ipc)
            assert made.outer.images.lr == (1e4 if ipc == 1 else 1e3)
            assert (window.grow, method.areas.every) == (1000, 50 if ipc == 1 else 100)
            assert method.parameters.share == (0.0 if ipc == 1 else 0.25)
        climb = {1: (5, 10), 10: (10, 20), 50: (20, 40)}[ipc]
        assert (window.first, window.begin, window.last, window.epochs) == (0, *climb, 2)
        named = f"{bench}-{ipc}"
        assert method.areas.beta == (2.0 if named in ("imagewoof-10", "imagewoof-50") else 1.0)
        assert made.outer.rate.lr == (1e-6 if named == "imagewoof-10" else 1e-5)
        assert method.rate == (0.005 if named == "imagesquawk-50" else 0.01)
        assert not made.zca


def test_edf_on_cifar_and_tiny(spec: str) -> None:
    table = rows_after(spec, "| | model | T | batch_syn | lr_img | lr_y |")
    assert len(table) == 14
    for key, arch, inner, batch, image, label, rate, gate, _, starts, more in table[1:]:
        data, _, size = key.partition(" ")[0].partition("-")
        bench, ipc = DATA[data], int(size)
        made = recipe("edf", bench, ipc)
        method, window = made.method, made.method.window
        first, begin, last, grow = stretch(starts)
        assert (window.first, window.begin, window.last, window.grow) == (first, begin, last, grow)
        assert made.arch == f"convnet{arch[1]}"
        assert method.inner == int(inner)
        assert method.batch == min(int(batch), ipc * classes(bench))
        assert made.outer.images.lr == float(image)
        assert made.outer.labels is not None
        assert made.outer.labels.lr == float(label)
        assert (made.outer.rate.lr, method.gate) == (float(rate), float(gate))
        looks = more.split(" / ") if " / " in more else []  # else a key that nothing reads, or none
        areas = method.areas
        assert method.parameters.share == (float(looks[0]) if looks else 0.0)
        assert (areas.beta is None) == (not looks)
        if looks:
            assert areas.threshold == (None if looks[1] == "mean" else float(looks[1]))
            assert areas.every == int(looks[2])
            assert areas.net == ("resnet18-bn" if "ResNet18" in looks[3] else "convnet3")
            assert (areas.layer == "layer4") == ("ResNet18" in looks[3])
        assert method.init == ("real" if "`real`" in key else "known")
        assert (made.zca, window.epochs) == (True, 3 if key == "C100-1" else 2)
        # As its file would be converted, but for what is looked at, which the table tells loosely.
        file = {
            "dataset": {"Tiny": "Tiny", "C10": "CIFAR10", "C100": "CIFAR100"}[data],
            "model": f"ConvNetD{arch[1]}", "ipc": ipc, "syn_steps": int(inner),
            "expert_epochs": window.epochs, "batch_syn": int(batch), "lr_img": float(image),
            "lr_y": float(label), "lr_lr": rate, "threshold": float(gate), "Iteration": 10000,
            "Sequential_Generation": grow > 0, "current_max_start_epoch": begin,
            "min_start_epoch": first, "max_start_epoch": last, "expansion_end_epoch": grow or 3000,
            "pix_init": "real" if "`real`" in key else "samples_predicted_correctly",
        }  # fmt: skip
        if looks:
            file |= {"loss_threshold": looks[0]}
        value, _ = convert(file, f"IPC{ipc}.yaml")
        same = validate(value, "converted").method
        plain = {"areas": type(areas)(), "schooling": method.schooling}
        assert same.model_copy(update=plain) == method.model_copy(update=plain)


def test_reported_numbers_of_subsets(spec: str) -> None:
    """EDF's Table 1, a method a column."""
    known = {(r.row, r.benchmark, r.ipc, r.arch): r for r in reported()}
    table = rows_after(spec, "| set | ipc | Random | MTT |")
    names = dict(zip(("Nette", "Woof", "Meow", "Yellow", "Fruit", "Squawk"), SUBSETS, strict=False))
    bench, found = "", 0
    for where, ipc, *cells in table[1:]:
        bench = names.get(where, "" if where else bench)
        if not bench:
            continue
        for row, cell in zip(("random", "mtt", "ftd", "datm", "edf"), cells, strict=False):
            cell = cell.strip("*")
            if cell == "–":
                assert (row, bench, int(ipc), "convnet5") not in known
                continue
            mean, _, std = cell.partition("±")
            record = known[row, bench, int(ipc), "convnet5"]
            assert record.value == pytest.approx(float(mean) / 100)
            assert float(record.versions["std"]) == pytest.approx(float(std) / 100)
            found += 1
    assert found == 6 * (5 + 5 + 3)


def method_of(name: str, bench: str, ipc: int) -> TrajectoryMatching:
    return recipe(name, bench, ipc).method


def classes(bench: str) -> int:
    return {"cifar10": 10, "cifar100": 100, "tiny-imagenet": 200}[bench]


def spread(cell: str, count: int) -> list[str]:
    """ "1/2/3", or one value for all."""
    parts = cell.split("/")
    return parts * count if len(parts) == 1 else parts


def stretch(text: str) -> tuple[int, int, int, int]:
    """First start, begin, last and grow of "0-4", or of "0-(10->20,1000)"."""
    numbers = [int(n) for n in re.findall(r"\d+", text)]
    if len(numbers) == 2:
        return numbers[0], 1, numbers[1], 0
    first, begin, last, grow = numbers
    return first, begin, last, grow


NAMES = {"imagenette": "imagenette", "imagewoof": "imagewoof", "imagemeow": "imagemeow",
         "imageyellow": "imageyellow", "imagefruit": "imagefruit", "imagesquawk": "imagesquawk",
         **{f"comp-dd/{c}-{s}": f"{c}s_{s}" for c in ("bird", "car", "dog")
            for s in ("easy", "hard")}}  # fmt: skip


def released(spec: str, bench: str, ipc: int) -> dict:
    """The configuration file as it was published, by the words and the table of 5.4."""
    table = rows_after(spec[spec.index(f"IPC{ipc} –") :], "| | nette | woof |")
    at = SUBSETS.index(bench)
    told = {row[0].partition(" ")[0]: row[1:][at] for row in table[1:]}
    climb = {1: (5, 10), 10: (10, 20), 50: (20, 40)}[ipc]
    found = {
        "dataset": "ImageNet", "subset": NAMES[bench], "model": "ConvNetD5", "res": 128,
        "ipc": ipc, "expert_epochs": 2, "lr_teacher": 0.01, "Iteration": 10000, "num_eval": 1,
        "eval_it": 500, "skip_first_eva": False, "Momentum_y": 0.9, "batch_train": 128,
        "pix_init": "samples_predicted_correctly", "Sequential_Generation": True,
        "min_start_epoch": 0, "lr_lr": "1e-5", "zca": False, "model_name": "ResNet18",
        "target_layer_deep": "layer4", "beta": 1.0, "act_threshold": -1, "device": [0, 1, 2, 3],
        "buffer_path": "../buffer_storage/in1k", "ema_decay": 0.9995,
        "lr_y": float(told.get("lr_y", 5)), "threshold": float(told["threshold"]),
        "current_max_start_epoch": climb[0], "max_start_epoch": climb[1],
        "expansion_end_epoch": int(told.get("E_x", 1000)),
        "syn_steps": int(told.get("T", 40)), "batch_syn": int(told.get("batch_syn", 1000)),
        "lr_img": float(told.get("lr_img", {1: 10000, 10: 1000}.get(ipc, 0))),
        "interval": int(told.get("interval", {1: 50, 10: 100}.get(ipc, 0))),
        "loss_threshold": float(told.get("α", {1: 0, 10: 0.25}.get(ipc, 0))),
    }  # fmt: skip
    special = {
        ("imagewoof", 10): {"beta": 2.0, "lr_lr": "1e-6"},
        ("imagewoof", 50): {"beta": 2.0},
        ("imagesquawk", 1): {"beta": "1.0s"},
        ("imagesquawk", 50): {"lr_teacher": 0.005},
    }
    found |= special.get((bench, ipc), {})
    if bench == "imagefruit" and ipc < 50:  # "all say ipc: 50 and 20 to 40 ranges"
        found |= {"ipc": 50, "current_max_start_epoch": 20, "max_start_epoch": 40,
                  "interval": 100, "loss_threshold": 0.375}  # fmt: skip
    return found


@pytest.mark.parametrize("ipc", [1, 10, 50])
@pytest.mark.parametrize("bench", SUBSETS)
def test_released_configurations_convert_to_these(spec: str, bench: str, ipc: int) -> None:
    value, notes = convert(released(spec, bench, ipc), f"IPC{ipc}.yaml")
    made, ours = validate(value, "converted"), recipe("edf", bench, ipc)
    assert made.method == ours.method
    for name in ("images", "labels", "rate", "steps"):
        assert getattr(made.outer, name) == getattr(ours.outer, name)
    assert made.outer.keep == tuple(range(500, 10001, 500))
    assert (made.arch, made.zca, made.benchmark, made.ipc) == ("convnet5", False, bench, ipc)
    assert (made.evaluate[0].protocol, made.evaluate[0].seeds) == ("edf@1", 1)
    said = "; ".join(notes)
    assert "ema_decay: left out" in said
    assert ("a copy of the file for 50" in said) == (bench == "imagefruit" and ipc < 50)
    assert ("1.0s is a misprint, read as 1.0" in said) == ((bench, ipc) == ("imagesquawk", 1))
