"""Views of a batch, made as a `MixDraw` says: two matrix products, whatever was drawn.

Shuffling patches, cropping, resizing with antialias and mirroring are linear and act on rows and
columns apart. So each image has one matrix for its rows and one for its columns, and a batch is two
batched products: no loop over images, deterministic gradients on every device. Where nothing is
shuffled, made smaller or derived, a pixel of a view is a mean of four, and those are looked up.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from stillroom.data.randaugment import randaugmented
from stillroom.data.replay import MixDraw
from stillroom.errors import StillroomError
from stillroom.types import Preprocess

_NOWHERE = -(2**40)  # in no box


def apply(x: Tensor, drawn: MixDraw, preprocess: Preprocess | None = None) -> Tensor:
    """Make the views of images x, float [B,ch,H,W] in network space -> [B,ch,h,w], same dtype.

    `preprocess`, that of x, is for draws with RandAugment, which changes 8-bit pixels.

    Bilinear with antialias, as torchvision's `resized_crop(antialias=True)`. Computed in float32
    at least, also under autocast; TF32, where numerics allow it, holds for the products.
    Without a gradient, crops that grow are looked up and not multiplied: other last digits, in
    float32 up to 1e-4 for noise of 224 pixels.
    Gradient: through x, but for RandAugment. Randomness: none.
    Raises: StillroomError if the draw is for other sides or another number of images.
    """
    if x.ndim != 4 or not x.is_floating_point():
        raise StillroomError(f"images are {x.dtype} {list(x.shape)}; views need float [B,ch,H,W]")
    if tuple(x.shape[2:]) != drawn.source:
        raise StillroomError(
            f"images of {x.shape[2]}x{x.shape[3]} meet a draw for {drawn.source[0]}x"
            f"{drawn.source[1]}; give the images that it was drawn for"
        )
    counts = {len(t) for t in (drawn.crops, drawn.flips, drawn.cols, drawn.rows)}
    if drawn.mix != "none":
        counts |= {len(drawn.partners)}
    if drawn.ops.shape[1]:
        counts |= {len(drawn.ops), len(drawn.signs)}
    if counts - {1, len(x)}:
        raise StillroomError(f"a draw for {max(counts)} images meets a batch of {len(x)}")
    if drawn.ops.shape[1]:
        x = _changed(x, drawn, preprocess)
    made = x.to(torch.promote_types(x.dtype, torch.float32))
    with torch.autocast(x.device.type, enabled=False):
        lookup = _grows(drawn) and not x.requires_grad
        made = (_looked_up if lookup else _multiplied)(made, drawn)
    return mixed(made, drawn).to(x.dtype)


def _multiplied(x: Tensor, drawn: MixDraw) -> Tensor:
    """Any views, by a matrix for rows and one for columns."""
    top, left, height, width = drawn.crops.unbind(1)
    down = _matrix(drawn.rows, top, height, drawn.source[0], drawn.size[0], x.device)
    across = _matrix(drawn.cols, left, width, drawn.source[1], drawn.size[1], x.device, drawn.flips)
    y = x.flatten(1, 2) @ _one_or_all(across.to(x)).mT  # [B,ch*H,w]
    made: Tensor = _one_or_all(down.to(x)[:, None]) @ y.unflatten(1, x.shape[1:3])  # [B,ch,h,w]
    return made


def _grows(drawn: MixDraw) -> bool:
    """Whether views are crops made larger, no strip shuffled; by the draw, on the CPU.

    Crops of the views' own size are left to the product, which moves pixels to the bit.
    """
    sides, size = drawn.crops[:, 2:], torch.tensor(drawn.size)
    if max(drawn.cols.shape[1], drawn.rows.shape[1]) > 1:
        return False
    return bool((sides <= size).all()) and not bool((sides == size).all())


def _looked_up(x: Tensor, drawn: MixDraw) -> Tensor:
    """Views of crops that are not made smaller, where antialias changes nothing: bilinear."""
    top, left, height, width = drawn.crops.unbind(1)
    down = _places(top, height, drawn.source[0], drawn.size[0], x)
    across = _places(left, width, drawn.source[1], drawn.size[1], x, drawn.flips)
    grid = torch.stack(torch.broadcast_tensors(across[:, None], down[:, :, None]), -1)
    found: Tensor = F.grid_sample(x, grid.expand(len(x), -1, -1, -1), align_corners=False)
    return found


def _places(
    start: Tensor, length: Tensor, side: int, out: int, x: Tensor, flip: Tensor | None = None
) -> Tensor:
    """Where the pixels of a view lie along an axis: [n,out], -1 and 1 the borders of the image.

    Between the centres of the first and last pixel of the box, so that none beyond it counts.
    """
    start, length = start[:, None].double(), length[:, None].double()
    view = torch.arange(out).expand(len(start), -1)
    if flip is not None:
        view = torch.where(flip[:, None], out - 1 - view, view)
    inside = ((view + 0.5) * (length / out) - 0.5).clamp_min(0).minimum(length - 1)
    return ((2 * (start + inside) + 1) / side - 1).to(x)


def _changed(x: Tensor, drawn: MixDraw, preprocess: Preprocess | None) -> Tensor:
    """RandAugment of the pixels of images in network space, rounded to eight bits."""
    if preprocess is None:
        raise StillroomError("views with RandAugment are of pixels; give `preprocess` as well")
    if x.shape[1] not in {1, 3}:
        raise StillroomError(f"RandAugment is for 1 or 3 channels, not {x.shape[1]}; train without")
    pixels = preprocess.invert(x).clamp(0, 1).mul(255).round().to(torch.uint8)
    ops, signs = (t.expand(len(x), -1) for t in (drawn.ops, drawn.signs))
    return preprocess.apply(randaugmented(pixels, ops, signs, drawn.magnitude)).to(x)


def mixed(y: Tensor, drawn: MixDraw) -> Tensor:
    """Mix the views of a batch [B,ch,h,w] with one another, as the draw says.

    Gradient: through y. Source: CutMix, arXiv:1905.04899; MixUp, arXiv:1710.09412.
    """
    if drawn.mix == "none":
        return y
    partners = drawn.partners.to(y.device)
    if drawn.mix == "mixup":
        return drawn.share * y + (1 - drawn.share) * y[partners]
    r1, c1, r2, c2 = drawn.box
    out = y.clone()
    out[:, :, r1:r2, c1:c2] = y[:, :, r1:r2, c1:c2][partners]
    return out


def _one_or_all(matrices: Tensor) -> Tensor:
    """A matrix for the whole batch without its batch dimension: one product instead of B."""
    return matrices[0] if len(matrices) == 1 else matrices


def _matrix(
    perm: Tensor,
    start: Tensor,
    length: Tensor,
    side: int,
    out: int,
    device: torch.device,
    flip: Tensor | None = None,
) -> Tensor:
    """Weights of source rows (or columns) in those of a view: float64 [n,out,side] on a device.

    perm [n,f], start and length [n]: patch shuffle and box along this axis. A triangle around the
    place of each pixel of the view, at least one source pixel to either side, cut off at the
    border of the box and made to sum to 1. Pixels of the box outside the image count in the sum
    and weigh 0.
    """
    used = side // perm.shape[1] * perm.shape[1]
    low, high = min(0, int(start.min())), max(used, int((start + length).max()))  # on the CPU
    place = _shuffled(perm.to(device), side)  # [n,side]
    if (low, high) != (0, used):
        beyond = torch.tensor([*range(low, 0), *range(used, high)], device=device)
        place = torch.cat([place, beyond.expand(len(place), -1)], 1)
    start, length = start.to(device)[:, None], length.to(device)[:, None]  # [n,1]
    inside = (place >= start) & (place < start + length)  # [n,side + beyond]
    step = length.double() / out  # source pixels a view pixel
    view = torch.arange(out, device=device).expand(len(start), -1)  # [n,out]
    if flip is not None:
        view = torch.where(flip.to(device)[:, None], out - 1 - view, view)
    centre = (view + 0.5) * step + start
    weights = (place.double() + 0.5)[:, None] - centre[:, :, None]  # [n,out,side + beyond]
    weights.abs_().div_(step.clamp_min(1)[:, :, None])  # in place: the largest tensor of all
    weights.neg_().add_(1).clamp_min_(0).mul_(inside[:, None])
    return weights.div_(weights.sum(2, keepdim=True))[:, :, :side]


def _shuffled(perm: Tensor, side: int) -> Tensor:
    """Where each source row or column lies after the shuffle: int64 [n,side]; far off: dropped."""
    f = perm.shape[1]
    strip, at = side // f, torch.arange(side, device=perm.device)
    to = perm.argsort(1)  # strip perm[j] goes to j
    place = to[:, (at // strip).clamp_max(f - 1)] * strip + at % strip
    return torch.where(at < strip * f, place, _NOWHERE)
