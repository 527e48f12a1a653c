"""Code that loads a set: in plain PyTorch, and with stillroom. What is shown is what is tested."""

from __future__ import annotations

from stillroom.distilled import Distilled


def plain_code(name: str, data: Distilled) -> str:
    """Python that ends with `images`, `labels`, `classes` and `preprocess`; no stillroom needed."""
    n, ch, high, wide = data.images.shape
    lines = [
        *(["import io"] if data.storage == "jpeg" else []),
        "import json",
        "from pathlib import Path",
        "",
        *(["import numpy"] if data.storage == "jpeg" else []),
        "import torch",
        *(["from PIL import Image"] if data.storage == "jpeg" else []),
        "from safetensors.torch import load_file",
        "",
        f"folder = Path({name!a})",
        'meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))',
        'tensors = load_file(folder / "data.safetensors")',
        'classes = meta["classes"]  # names, in label order',
        "",
        'mean = torch.tensor(meta["preprocess"]["mean"]).view(1, -1, 1, 1)',
        'std = torch.tensor(meta["preprocess"]["std"]).view(1, -1, 1, 1)',
        "",
        "",
        "def preprocess(pixels):",
        '    """Real test images, float [B, ch, H, W] in [0, 1], must go through this too."""',
        *_preprocess(data),
        "",
        "",
        *_images(data),
        f"# float32 [{n}, {ch}, {high}, {wide}], ready for the network",
        *_labels(data),
    ]
    return "\n".join(lines) + "\n"


def training_code(data: Distilled, taught: bool = False) -> str:
    """The loss that goes with the labels, as a line for a training loop with a `model`.

    `taught`: the number on the page is of students that learned what trained networks say.
    """
    hints = []
    if taught:
        hints += [
            "# the number above is of students with labels of trained networks, which",
            "# `stillroom evaluate` makes or the set carries; with its own labels:",
        ]
    if data.augment != "none":
        hints.append("# students here were trained with the augmentation named under Provenance")
    if data.lr is not None:
        hints.append(f"# the set has learned its own step size: lr={data.lr:g} for plain SGD")
    loss = {
        "hard": "loss = torch.nn.functional.cross_entropy(model(images), labels)",
        "probs": "loss = torch.nn.functional.cross_entropy(model(images), labels)",
        "logits": "loss = torch.nn.functional.cross_entropy(model(images), labels.softmax(1))",
    }[data.label_kind]
    return "\n".join([*hints, loss]) + "\n"


def stillroom_code(name: str, data: Distilled) -> str:
    """Python that loads, verifies and shows a set with stillroom."""
    code = f"""import stillroom

data = stillroom.load({name!a})  # every tensor is checked against its SHA-256
images, labels, classes = data.images, data.labels, data.classes
preprocess = data.preprocess.apply  # for real images, uint8 or float in [0, 1]
pixels = data.pixels()  # float32 in [0, 1], to look at
"""
    if data.relabels is None:
        return code
    return f"""{code}
from stillroom.data.views import apply

for rows, drawn, logits in data.relabels.epoch(0):  # what teachers say of drawn views
    views = apply(images[rows], drawn, data.preprocess)
soft = data.relabels.soft()  # and of every image as it is
"""


def _preprocess(data: Distilled) -> list[str]:
    if data.preprocess.zca is None:
        return ["    return (pixels - mean) / std"]
    return [
        "    x = (pixels - mean) / std",
        '    flat = (x.flatten(1) - tensors["zca.mean"]) @ tensors["zca.transform"]',
        "    return flat.view_as(x)  # ZCA whitening",
    ]


def _images(data: Distilled) -> list[str]:
    if data.storage == "jpeg":
        n, ch, high, wide = data.images.shape
        return [
            'ends = tensors["jpeg.ends"].tolist()  # each image is a JPEG file of its own',
            'files = [tensors["jpeg"][a:b].numpy() for a, b in zip([0, *ends], ends)]',
            "pixels = [numpy.array(Image.open(io.BytesIO(f.tobytes()))) for f in files]",
            f"pixels = torch.from_numpy(numpy.stack(pixels)).view({n}, {high}, {wide}, {ch})",
            "images = preprocess(pixels.permute(0, 3, 1, 2).float() / 255)",
        ]
    if data.storage == "uint8":
        return ['images = preprocess(tensors["images"].float() / 255)  # stored as uint8 pixels']
    if data.storage == "float16":
        return ['images = tensors["images"].float()  # stored as float16, after preprocess']
    return ['images = tensors["images"]  # stored as float32, after preprocess']


def _labels(data: Distilled) -> list[str]:
    n, c = len(data), len(data.classes)
    what = {
        "hard": f"int64 [{n}], index into classes",
        "probs": f"float32 [{n}, {c}], probabilities",
        "logits": f"float32 [{n}, {c}], logits: use labels.softmax(1) as targets",
    }[data.label_kind]
    if data.label_kind == "hard":
        return [f'labels = tensors["labels"]  # {what}']
    return [f'labels = tensors["labels"].float()  # {what}']
