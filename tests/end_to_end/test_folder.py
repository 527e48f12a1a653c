"""From a folder of pictures to a page, through the command; generated and real images."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from stillroom.cli import run
from stillroom.distilled import load


def pictures(root: Path, classes: tuple[str, ...], each: int = 10, side: int = 16) -> None:
    """Grey-noise JPEGs; a class has a bright patch of its own."""
    gen = torch.Generator().manual_seed(0)
    for c, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for i in range(each):
            pixels = torch.randint(0, 90, (side, side, 3), generator=gen).to(torch.uint8)
            pixels[:, c * 4 : c * 4 + 4] += 120
            Image.fromarray(pixels.numpy()).save(root / name / f"{i}.jpg", quality=95)


def test_forty_pictures_to_a_page(tmp_path, capsys):
    """No test split, names with spaces: the set, its pictures, the table, the page."""
    data, out = tmp_path / "my photos", tmp_path / "out"
    pictures(data, ("a cat", "two dogs", "bird <3", "fish"))
    flags = ["--arch", "convnet1-w16", "--steps", "20", "--threads", "1", "--quiet"]
    assert run(["distill", "dm", "--data", str(data), "--ipc", "2", "--out", str(out), *flags]) == 0
    files = sorted(p.name for p in (out / "images").iterdir())
    assert len(files) == 8
    assert files[0] == "0000_a-cat_0000.png"
    assert (out / "labels.csv").read_text().count("\n") == 9
    assert (
        run(["evaluate", str(out), "--baselines", "--seeds", "2", "--threads", "1", "--quiet"]) == 0
    )
    table = capsys.readouterr().out
    for row in ("dm@20", "random", "class-mean", "k-means", "keyed stratified 80/20"):
        assert row in table
    records = [json.loads(line) for line in (out / "records.jsonl").read_text().splitlines()]
    assert len(records) == 2 + 5 + 2 + 2
    assert {r["split"] for r in records} == {"keyed stratified 80/20"}
    assert sum(r["row"] == "random" for r in records) == 5
    assert len({r["set_key"] for r in records if r["row"] == "random"}) == 5
    assert run(["report", str(out)]) == 0
    page = (out / "report.html").read_text()
    assert "bird &lt;3" in page
    assert "bird <3" not in page


def test_init_from_a_set_and_from_a_folder(tmp_path):
    data = tmp_path / "photos"
    pictures(data, ("a", "b"))
    common = ["--data", str(data), "--ipc", "2", "--arch", "convnet1-w8", "--quiet"]
    start, again = tmp_path / "start", tmp_path / "again"
    assert run(["distill", "random", *common, "--out", str(start)]) == 0
    flags = ["--init-from", str(start), "--steps", "1", "--images.lr", "1e-9"]
    assert run(["distill", "dm", *common, *flags, "--out", str(again)]) == 0
    assert torch.allclose(load(again).images, load(start).images, atol=1e-4)
    folder = tmp_path / "from-folder"
    flags[1] = str(data)
    assert run(["distill", "dm", *common, *flags, "--out", str(folder)]) == 0
    real = Image.open(data / "a" / "0.jpg").convert("RGB")
    first = torch.from_numpy(np.array(real)).permute(2, 0, 1) / 255
    assert torch.allclose(load(folder).pixels()[0], first, atol=1e-3)


@pytest.mark.slow
def test_ten_tiny_imagenet_classes_as_jpeg_folders(tmp_path, shared, capsys):
    """Real JPEGs of ten classes, names with spaces, no test split."""
    import pyarrow.parquet as pq

    table = pq.read_table(shared / "data" / "tiny-imagenet" / "train.parquet")
    lines = (shared / "data" / "tiny-imagenet" / "classes.tsv").read_text().splitlines()
    names = {int(x.split("\t")[0]): x.split("\t")[2].split(",")[0] for x in lines}
    root = tmp_path / "ten classes"
    for row in range(table.num_rows):
        label = table["label"][row].as_py()
        if label < 10:
            folder = root / names[label]
            folder.mkdir(parents=True, exist_ok=True)
            blob = table["image"][row].as_py()["bytes"]
            assert Image.open(io.BytesIO(blob)).size == (64, 64)
            (folder / f"{row}.JPEG").write_bytes(blob)
    assert any(" " in p.name for p in root.iterdir())
    out = tmp_path / "out"
    flags = ["--steps", "3", "--batch-real", "16", "--arch", "convnet4-w16", "--quiet"]
    assert run(["distill", "dm", "--data", str(root), "--ipc", "1", "--out", str(out), *flags]) == 0
    made = load(out)
    assert made.images.shape == (10, 3, 64, 64)
    assert made.data["split"] == "keyed stratified 80/20"
    assert made.data["counts"] == {"train": 1600, "val": 0, "test": 400}
    assert run(["inspect", str(out)]) == 0
    assert "ten classes" in capsys.readouterr().out


@pytest.mark.slow
def test_cifar10_by_its_folder_name_takes_the_published_row(tmp_path, shared, capsys):
    data, out = shared / "data" / "cifar10", tmp_path / "out"
    flags = ["--steps", "2", "--keep", "every:1", "--batch-real", "16"]
    assert run(["distill", "dm", "--data", str(data), "--ipc", "1", "--out", str(out), *flags]) == 0
    assert "settings: recipe dm/cifar10-ipc1" in capsys.readouterr().err
    made = load(out)
    assert made.classes[0] == "airplane"
    # Name, classes and size are CIFAR-10's, so what is published for it applies to the folder.
    assert made.preprocess.name == "cifar10"
    assert made.arch == "convnet3"
    assert (out / "steps" / "1" / "data.safetensors").is_file()
