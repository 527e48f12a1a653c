"""Names of networks: what people write, and the one spelling that goes into keys.

No torch in here, so that the command line can list and check names before it starts anything.
Three kinds. Families of the matching papers with tokens (`convnet3-w64-bn`): spec of the matching
methods, section 2 (VICO-UoE/DatasetCondensation); the grammar with hyphens is ours. Whole names
without tokens (`wrn16-2`, `imagenet/resnet18`): spec of the decoupled methods, section 2.1. Names
in another library, behind its own (`timm/convnext_tiny`).
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from stillroom.errors import StillroomError, suggest

MAX_DEPTH = 10
MAX_WIDTH = 8192
MAX_LETTERS = 100  # timm has names of 50
LIBRARIES = ("torchvision", "timm")

# family -> (norms, other tokens) that its names may carry; the first norm is the default
_FAMILIES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "convnet": (
        ("in", "bn", "ln", "gn", "nn"),
        ("ar", "as", "al", "aswish", "ap", "mp", "np", "d", "w"),
    ),
    "mlp": (("nn",), ()),
    "lenet": (("nn",), ()),
    "alexnet": (("nn", "bn", "in"), ()),
    "vgg11": (("in", "bn", "nn"), ()),
    "resnet18": (("in", "bn"), ("ap",)),
}
# whole name -> other spellings of it, in lower case and with hyphens; the reference's come first
_WHOLE: dict[str, tuple[str, ...]] = {
    "mobilenetv2-x0.5": ("mobilenetv2",),  # EDC has no other width
    "shufflenetv2-x0.5": ("shufflenetv2-0-5",),
    "wrn16-2": ("wrn-16-2",),
    # Networks of ImageNet, as torchvision has them: other stems, widths and keys than small ones.
    "imagenet/resnet18": (),
    "imagenet/mobilenet_v2": (),
    "imagenet/efficientnet_b0": (),
    "imagenet/shufflenet_v2_x0_5": (),
    "imagenet/alexnet": (),
}
_SPELLINGS = {
    text.replace("_", "-"): name for name, others in _WHOLE.items() for text in (name, *others)
}
_KINDS = {
    **dict.fromkeys(("in", "bn", "ln", "gn", "nn"), "norm"),
    **dict.fromkeys(("ar", "as", "al", "aswish"), "act"),
    **dict.fromkeys(("ap", "mp", "np"), "pool"),
    "d": "depth",
    "w": "width",
}
_FAMILY = re.compile(r"(convnet|mlp|lenet|alexnet|vgg-?11|resnet-?18)(.*)")
# "aswish" comes before "as": the first alternative that fits wins
_TOKEN = re.compile(r"[dw]?\d+|aswish|as|ar|al|in|bn|ln|gn|nn|ap|mp|np")
_TOKENS = re.compile(rf"(?:{_TOKEN.pattern})+")
_MODEL = re.compile(r"[a-z0-9_]+")  # what a library may call a network

_KNOWN = (
    "convnet",
    *(f"convnet{depth}" for depth in range(1, 7)),
    *(f"convnet3-{token}" for token in ("bn", "ln", "gn", "nn", "as", "al", "aswish", "mp", "np")),
    "convnet3-bn-aswish",
    *(f"convnet3-w{width}" for width in (32, 64, 256)),
    "mlp",
    "lenet",
    "alexnet",
    "alexnet-bn",
    "vgg11",
    "vgg11-bn",
    "resnet18",
    "resnet18-bn",
    "resnet18-ap",
    "resnet18-bn-ap",
    *_WHOLE,
)


@dataclass(frozen=True)
class Spec:
    """A parsed name. `depth` None means "by image size" (`depth_for`); only ConvNet has one.

    norm: in, bn, ln, gn, nn; act: ar, as, al, aswish; pool: ap, mp, np (ConvNet), and for
    ResNet-18 ap = average pooling in place of strides, "" = strides. A whole name is its own family
    and has no use for any of them; of a library's network, `family` is the library and `model` its
    name there.
    """

    family: str
    depth: int | None = None
    width: int = 128
    norm: str = "in"
    act: str = "ar"
    pool: str = "ap"
    model: str = ""

    @property
    def text(self) -> str:
        """The canonical spelling: defaults left out, tokens in one order."""
        if self.family in LIBRARIES:
            return f"{self.family}/{self.model}"
        if self.family in _WHOLE:
            return self.family
        tokens = [self.family]
        if self.family == "convnet":
            tokens[0] += "" if self.depth is None else str(self.depth)
            tokens += [f"w{self.width}"] if self.width != 128 else []
        tokens += [self.norm] if self.norm != _FAMILIES[self.family][0][0] else []
        if self.family == "convnet":
            tokens += [self.act] if self.act != "ar" else []
            tokens += [self.pool] if self.pool != "ap" else []
        elif self.pool:
            tokens.append(self.pool)
        return "-".join(tokens)


def parse(name: str) -> Spec:
    """Read a name: ours (`convnet-d4-w64-bn`) or a reference's (`ConvNetD4`, `WRN_16_2`).

    `convnet` and `convnet-<tokens>` leave the depth to the image size; the reference's `ConvNet`
    and `ConvNet<tokens>` (no hyphen) mean depth 3, whatever the case of their letters.
    Whether a library has the network that is named is not looked up here.

    Raises: StillroomError for an unknown family or token, a token given twice, a token the family
    does not have, a depth or width out of range, or no name that a library can have.
    """
    if not isinstance(name, str):
        raise StillroomError(f"arch={name!r} is not a network name; write e.g. 'convnet3'")
    if len(name) > MAX_LETTERS:  # metadata of foreign sets hold names too
        raise StillroomError(f"arch={name[:40]!r}... is not a network name; it is too long")
    refuse_weights(name)
    library, _, model = name.strip().lower().partition("/")
    if library in LIBRARIES:
        return _of_library(name, library, model)
    text = name.strip().lower().replace("_", "-")
    if text in _SPELLINGS:
        return Spec(_SPELLINGS[text])
    match = _FAMILY.fullmatch(text)
    if match is None:
        raise _unknown(name)
    family, rest = match[1].replace("-", ""), match[2]
    found = _read_tokens(name, family, rest)
    spec = Spec(family, norm=_FAMILIES[family][0][0], pool="ap" if family == "convnet" else "")
    depth: int | None = None
    if family == "convnet":
        by_size = rest.startswith("-") or name.strip() == "convnet"
        depth = _in_range(name, "depth", found.pop("depth", None if by_size else "3"), MAX_DEPTH)
    width = _in_range(name, "width", found.pop("width", str(spec.width)), MAX_WIDTH)
    return Spec(
        family,
        depth=depth,
        width=spec.width if width is None else width,
        norm=found.get("norm", spec.norm),
        act=found.get("act", spec.act),
        pool=found.get("pool", spec.pool),
    )


def split_weights(name: str) -> tuple[str, str]:
    """Split `NETWORK=WEIGHTS`, a trained network, into both; without weights the second is empty.

    >>> split_weights("imagenet/resnet18=published"), split_weights("convnet3")
    (('imagenet/resnet18', 'published'), ('convnet3', ''))
    """
    network, _, weights = name.partition("=")
    return network, weights


def canonical(name: str) -> str:
    """Return the one spelling of `name` that keys and records hold.

    >>> canonical("ConvNetW64BN"), canonical("convnet-bn-d3-w64"), canonical("ResNet18BN_AP")
    ('convnet3-w64-bn', 'convnet3-w64-bn', 'resnet18-bn-ap')
    >>> canonical("WRN_16_2"), canonical("ImageNet/mobilenet-v2"), canonical("timm/ResNet50")
    ('wrn16-2', 'imagenet/mobilenet_v2', 'timm/resnet50')

    Raises: StillroomError as `parse`.
    """
    return parse(name).text


def of_library(name: str) -> bool:
    """Return whether a canonical name is that of a network in torchvision or timm."""
    return name.partition("/")[0] in LIBRARIES


def refuse_weights(name: str) -> None:
    """Refuse a name that goes on with weights where networks begin afresh.

    Raises: StillroomError.
    """
    network, weights = split_weights(name)
    if weights:
        raise StillroomError(
            f"arch={name[:80]!r} names weights, and networks begin afresh here; write {network!r}"
        )


def depth_for(size: int) -> int:
    """Return the ConvNet depth of an image size: round(log2(size)) - 2, at least 1.

    The final map is then 4x4 at every power of two: 32 -> 3, 64 -> 4, 128 -> 5 (FTD section 4.1,
    PAD section 4.1); 28 -> 3, 8 -> 1.

    Raises: StillroomError if size < 1.
    """
    if size < 1:
        raise StillroomError(f"size={size} is not an image size; it must be at least 1")
    return max(1, round(math.log2(size)) - 2)


def default_arch(size: int) -> str:
    """Return the canonical name of the usual network for an image size: `convnet3` at 32."""
    return f"convnet{depth_for(size)}"


def known_names() -> tuple[str, ...]:
    """Return the canonical names worth listing.

    `parse` accepts every combination of tokens, and whatever a library may call a network.
    """
    return _KNOWN


def _of_library(name: str, library: str, model: str) -> Spec:
    head, dot, tag = model.partition(".")
    if dot and _MODEL.fullmatch(head):
        # One network under two names would be two keys, and its weights would be someone's guess.
        raise StillroomError(
            f"arch={name!r} names published weights ({tag!r}), which are not loaded; write "
            f"'{library}/{head}' for the network"
        )
    if not _MODEL.fullmatch(model):
        raise StillroomError(
            f"arch={name!r} is not a name that {library} can have; write e.g. '{library}/resnet50'"
        )
    return Spec(library, model=model)


def _read_tokens(name: str, family: str, rest: str) -> dict[str, str]:
    norms, others = _FAMILIES[family]
    found: dict[str, str] = {}
    for part in rest.split("-"):
        if part and _TOKENS.fullmatch(part) is None:
            raise _unknown(name)
        for token in _TOKEN.findall(part):
            letters = token.rstrip("0123456789") or "d"  # a bare number is a depth: convnet3
            if letters not in norms + others:
                raise _unknown(name)
            kind = _KINDS[letters]
            if kind in found:
                raise StillroomError(f"arch={name!r} gives its {kind} twice; keep one of them")
            found[kind] = token.lstrip("dw") if letters in ("d", "w") else token
    return found


def _in_range(name: str, what: str, value: str | None, most: int) -> int | None:
    if value is None:
        return None
    if not 1 <= int(value) <= most:
        raise StillroomError(f"arch={name!r} has {what} {value}; use 1 to {most}")
    return int(value)


def _unknown(name: str) -> StillroomError:
    near = suggest(name.strip().lower(), _KNOWN)
    if name.strip().lower().startswith("imagenet/"):
        known = f"known there are {', '.join(n for n in _WHOLE if '/' in n)}"
        other = "any other of torchvision as 'torchvision/NAME'"
    else:
        small = (n for n in _WHOLE if "/" not in n)
        known = (
            f"known are {', '.join(_FAMILIES)} with tokens like -bn, -d4, -w64, -mp, -aswish, "
            f"{', '.join(small)}, imagenet/resnet18 and its like, torchvision/NAME, timm/NAME"
        )
        other = "your own as 'package.module:Factory'"
    return StillroomError(f"arch={name[:80]!r} is not a known network{near}; {known}, or {other}")
