"""Trees of statistics in the layout that EDC releases, written by naive loops, with its defects."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from stillroom.data.benchmarks import Benchmark
from stillroom.nets.zoo import build
from stillroom.rng import global_rng

ARCH = "convnet2-w4-bn"
Arrays = dict[str, Any]
_MADE: dict[tuple[str, int, str], nn.Module] = {}


def network(bench: Benchmark, seed: int = 0, arch: str = ARCH) -> nn.Module:
    """A network whose norms have seen the data; one for all tests that ask alike."""
    key = (bench.digest, seed, arch)
    if key not in _MADE:
        _MADE[key] = _trained(bench, seed, arch)
    return _MADE[key]


def _trained(bench: Benchmark, seed: int, arch: str) -> nn.Module:
    with global_rng(seed, "released"):
        net = build(arch, len(bench.classes), bench.channels, bench.size)
    net.train()
    with torch.no_grad():
        for _ in range(150):  # until what norms keep is that of the data
            net(images(bench))
    return net.eval()


def weights(bench: Benchmark, path: Path, seed: int = 0, arch: str = ARCH) -> Path:
    """Its checkpoint."""
    save_file(network(bench, seed, arch).state_dict(), path)
    return path


def images(bench: Benchmark) -> Tensor:
    return bench.preprocess.apply(bench.train.take(torch.arange(len(bench.train))))


def inputs(net: nn.Module, x: Tensor) -> dict[str, tuple[str, Tensor]]:
    """What every convolution and norm is given, with its kind, in module order."""
    seen: dict[str, tuple[str, Tensor]] = {}
    hooks = []
    for name, module in net.named_modules():
        kind = {nn.Conv2d: "Conv", nn.BatchNorm2d: "BN"}.get(type(module))
        if kind:
            hooks.append(
                module.register_forward_pre_hook(
                    lambda _, given, name=name, kind=kind: seen.update({name: (kind, given[0])})
                )
            )
    with torch.no_grad():
        net(x)
    for hook in hooks:
        hook.remove()
    return seen


def numbers(x: Tensor, patched: bool) -> Arrays:
    """Mean and variance of channels, and of 4 x 4 cells, of images as one."""
    flat = x.transpose(0, 1).flatten(1)
    found = {"running_dd_mean": flat.mean(1), "running_dd_var": flat.var(1, correction=0)}
    if patched:
        height, width = x.shape[2:]
        cells = [
            x[:, :, u : u + 4, v : v + 4].flatten()
            for u in range(0, height, 4)
            for v in range(0, width, 4)
        ]
        found["running_patch_mean"] = torch.stack([c.mean() for c in cells])
        found["running_patch_var"] = torch.stack([c.var(correction=0) for c in cells])
    return {name: value.numpy() for name, value in found.items()}


def averaged(parts: list[Arrays], counts: list[int]) -> Arrays:
    """The mean of statistics, each as often as it has images."""
    return {
        name: sum(n * part[name] for n, part in zip(counts, parts, strict=True)) / sum(counts)
        for name in parts[0]
    }


def swapped(arrays: Arrays) -> Arrays:
    """As the released code saves them by class."""
    if "running_patch_mean" not in arrays:
        return arrays
    there = {"running_patch_mean": "running_patch_var", "running_patch_var": "running_patch_mean"}
    return {there.get(name, name): value for name, value in arrays.items()}


def collected(net: nn.Module, bench: Benchmark, batch: int = 64) -> dict[str, Arrays]:
    """Path in the tree -> arrays, right ones: no defect but the variances' definition."""
    x, labels = images(bench), bench.train.labels
    layers = inputs(net, x)
    found: dict[str, Arrays] = {}
    for layer, (kind, given) in layers.items():
        patched = kind == "Conv"
        place = f"ConvNet={layer}/running.npz"
        if patched:
            batches = given.split(batch)
            parts = [numbers(some, True) for some in batches]
            found[f"ConvFeatureHook/{place}"] = averaged(parts, [len(some) for some in batches])
        for c in range(len(bench.classes)):
            own = [numbers(one[None], patched) for one in given[labels == c]]
            name = f"{kind}FeatureHook/class_{c}/{place}"
            found[name] = averaged(own, [1] * len(own))
    return found


def released(arrays: dict[str, Arrays]) -> dict[str, Arrays]:
    """The same as the released code saves it: patches of classes under each other's names."""
    return {n: swapped(a) if "/class_" in n else a for n, a in arrays.items()}


def doubled(arrays: dict[str, Arrays]) -> dict[str, Arrays]:
    """The same with those of all data added to themselves."""
    return {n: a if "/class_" in n else {k: 2 * v for k, v in a.items()} for n, a in arrays.items()}


def written(arrays: dict[str, Arrays], folder: Path) -> Path:
    """As a folder."""
    for name, some in arrays.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(path, **some)
    return folder


def zipped(folder: Path) -> Path:
    """As a zip beside it, with the folder's name above all, as released."""
    made = shutil.make_archive(str(folder), "zip", folder.parent, folder.name)
    return Path(made)
