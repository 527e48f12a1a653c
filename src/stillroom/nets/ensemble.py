"""K networks of one architecture as one object: the fast path, and its plain twin.

The only importer of `torch.func`. Two back ends compute the same thing: "loop" runs the networks in
turn, "vmap" as one batched call on stacked tensors. `torch.compile` wraps whole functions, never a
module inside a graph that is differentiated twice (docs/architecture.md, "Compiled second order").
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, grad_and_value, stack_module_state, vmap

from stillroom.errors import StillroomError
from stillroom.nets.parts import Features, Looks, Watched, batchnorms, padded, prefixed
from stillroom.nets.precomputed import precomputed, refuse_apart
from stillroom.nets.zoo import Arch
from stillroom.rng import global_rng
from stillroom.runtime import Runtime

Params = dict[str, Tensor]
Backend = Literal["loop", "vmap"]
Fn = Callable[..., Any]
# The largest activation of one forward without a graph: stays in cache on a CPU, fits on a GPU.
PIECE_BYTES = {"cpu": 2**24, "cuda": 2**30}


@dataclass
class Nets:
    """Makes ensembles of one architecture and keeps what they share: skeletons, compiled code."""

    arch: Arch
    classes: int
    channels: int
    size: int
    rt: Runtime
    backend: Backend = "loop"
    _cache: dict[Hashable, Any] = field(default_factory=dict, repr=False)

    def build(self, seed: int, *key: str | int) -> nn.Module:
        """One freshly initialised module, its draw keyed, on the run's device and dtype."""
        with global_rng(seed, *key):
            net = self.arch.build(self.classes, self.channels, self.size)
        return net.to(self.rt.device, self.rt.dtype)

    def make(self, k: int, seed: int, *key: str | int) -> Ensemble:
        """K networks; network i is keyed by (seed, *key, i), so K does not change network 0."""
        return self.wrap([self.build(seed, *key, i) for i in range(k)])

    def seeded(self, seeds: Sequence[int], *key: str | int) -> Ensemble:
        """One network a seed."""
        return self.wrap([self.build(seed, *key) for seed in seeds])

    def wrap(self, modules: Sequence[nn.Module]) -> Ensemble:
        """Take over the weights of given modules of this architecture."""
        self._cache.setdefault("skeleton", modules[0])
        return Ensemble(self, modules)

    @property
    def skeleton(self) -> nn.Module:
        """The module through which all weights are called."""
        return self._cache["skeleton"]  # type: ignore[no-any-return]

    def has_batchnorm(self) -> bool:
        """Whether statistics are taken over a batch, which then cannot be split."""
        if "skeleton" not in self._cache:
            self._cache["skeleton"] = self.build(0, "probe")
        return bool(batchnorms(self.skeleton))

    def function(self, name: Hashable, make: Callable[[], Fn]) -> Fn:
        """The function `name`, compiled where the runtime says so, made once."""
        if name not in self._cache:
            made = make()
            self._cache[name] = torch.compile(made, dynamic=False) if self.rt.compile else made
        return self._cache[name]  # type: ignore[no-any-return]

    def checked(self, name: Hashable, make: Callable[[], Fn], plain: Fn | None = None) -> Fn:
        """`function` of a gradient's gradient; where it is compiled, its first result is compared
        with that of plain code (`plain`: the same in less memory).

        Raises: StillroomError, on that call, if they differ.
        """
        call, seen = self.function(name, make), ("checked", name)
        if not self.rt.compile or seen in self._cache:
            return call

        def first(*args: Any) -> Any:
            found = call(*args)
            refuse_apart(found, lambda: (plain or make())(*args), self.rt.device)
            self._cache[seen] = True
            return found

        return first

    def watched(self, looks: Looks, key: Hashable) -> Callable[..., Any]:
        """The compiled function (weights, buffers, x) -> (logits, looks), in evaluation mode.

        Of a copy of the skeleton, which has hooks of its own for good.
        """

        def make() -> Callable[..., Any]:
            net = Watched(copy.deepcopy(self.skeleton), looks).eval()
            return lambda p, b, x: functional_call(net, (p, b), (x,))

        return self.function(("watched", key), make)

    def largest_activation(self) -> int:
        """Bytes of the largest layer output for one image."""
        return max(self._activations())

    def activation_bytes(self) -> int:
        """Bytes of all layer outputs for one image: a static estimate, from a dry run."""
        return sum(self._activations())

    def feature_size(self) -> int:
        """D of features [B,D]."""
        if "features" not in self._cache:
            with torch.no_grad():
                seen = Features(self.build(0, "probe").eval())(self.zeros(1))
            self._cache["features"] = seen.shape[1]
        return int(self._cache["features"])

    def piece(self) -> int:
        """Images of one forward without a graph: a power of two, from a static estimate."""
        most = PIECE_BYTES[self.rt.device.type] // self.largest_activation()
        return 1 << max(3, most.bit_length() - 1)

    def _activations(self) -> list[int]:
        if "activations" not in self._cache:
            found: list[int] = []

            def add(module: nn.Module, inputs: Any, output: Any) -> None:
                if isinstance(output, Tensor) and not list(module.children()):
                    found.append(output.numel() * output.element_size())

            net = self.build(0, "probe").eval()
            hooks = [m.register_forward_hook(add) for m in net.modules()]
            with torch.no_grad():
                net(self.zeros(1))
            for hook in hooks:
                hook.remove()
            self._cache["activations"] = found or [1]
        return list(self._cache["activations"])

    def forward_flops(self) -> int:
        """Floating-point operations (2 a multiply-add) of one image's forward."""
        if "flops" not in self._cache:
            from torch.utils.flop_counter import FlopCounterMode

            net = self.build(0, "probe").eval()
            try:
                with FlopCounterMode(display=False) as counter, torch.no_grad():
                    net(self.zeros(1))
            except (RuntimeError, ValueError) as error:  # what the network says, in one line
                shape = " x ".join(map(str, (self.channels, self.size, self.size)))
                why = str(error).splitlines()[0][:200]
                raise StillroomError(
                    f"arch={self.arch.name} cannot take images of {shape}: {why}"
                ) from error
            self._cache["flops"] = counter.get_total_flops()
        return int(self._cache["flops"])

    def zeros(self, n: int) -> Tensor:
        """[n,ch,H,W] of zeros: images that a network takes."""
        shape = (n, self.channels, self.size, self.size)
        return torch.zeros(shape, device=self.rt.device, dtype=self.rt.dtype)


class Ensemble:
    """K networks: `members` (loop) or stacked tensors (vmap); parameters are plain leaf tensors."""

    def __init__(self, nets: Nets, modules: Sequence[nn.Module]) -> None:
        self.nets = nets
        self.k = len(modules)
        self.frozen = False  # BatchNorm layers as in evaluation while the rest is trained
        self.stacked = nets.backend == "vmap" and self.k > 1
        if self.stacked:
            params, buffers = stack_module_state(list(modules))
            self.params: list[Params] = [{n: p.detach() for n, p in params.items()}]
            self.buffers: list[Params] = [{n: b.detach() for n, b in buffers.items()}]
        else:
            self.params = [{n: p.detach() for n, p in m.named_parameters()} for m in modules]
            self.buffers = [{n: b.detach() for n, b in m.named_buffers()} for m in modules]

    def leaves(self) -> list[Tensor]:
        """All parameter tensors, switched to require gradients (for training)."""
        return [p.requires_grad_() for member in self.params for p in member.values()]

    def member(self, i: int) -> tuple[Params, Params]:
        """Parameters and buffers of network i, by name."""
        if not self.stacked:
            return self.params[i], self.buffers[i]
        params = {n: p[i] for n, p in self.params[0].items()}
        return params, {n: b[i] for n, b in self.buffers[0].items()}

    @torch.no_grad()
    def freeze_norms(self, x: Tensor, momentum: float | None) -> None:
        """Take statistics of x [B,ch,H,W] in BatchNorm layers, and train with them from now on.

        `momentum` None: exactly those of x. A number: so much of x is mixed into what was there.
        """
        layers = batchnorms(self.nets.skeleton)
        usual = [layer.momentum for layer in layers]
        self.frozen = False
        try:
            for layer in layers:
                layer.momentum = momentum
            for i in range(self.k):
                params, buffers = self.member(i)
                if momentum is None:
                    for name, value in buffers.items():
                        if name.endswith("num_batches_tracked"):
                            value.zero_()  # the first batch then counts alone
                self._mode(train=True)
                functional_call(self.nets.skeleton, (params, buffers), (x,))
        finally:
            for layer, old in zip(layers, usual, strict=True):
                layer.momentum = old
        self.frozen = True

    @torch.no_grad()
    def estimate_norms(self, batches: Iterable[Tensor]) -> None:
        """Take BatchNorm statistics anew: the mean over batches [K,B,ch,H,W] of those of each.

        All else is as in evaluation, so that no dropout is drawn.
        """
        layers = batchnorms(self.nets.skeleton)
        if not layers:
            return
        members = [self.member(i) for i in range(self.k)]
        for _, buffers in members:
            for name, value in buffers.items():
                if name.endswith("num_batches_tracked"):
                    value.zero_()
        self._mode(train=False)
        usual = [layer.momentum for layer in layers]
        try:
            for layer in layers:
                layer.train()
                layer.momentum = None  # the plain mean of all batches so far
            with self.nets.rt.autocast():
                for x in batches:
                    for own, images in zip(members, x, strict=True):
                        functional_call(self.nets.skeleton, own, (images,))
        finally:
            for layer, old in zip(layers, usual, strict=True):
                layer.momentum = old

    def features(self, x: Tensor, train: bool = False) -> Tensor:
        """x float [B,ch,H,W] (shared) or [K,B,ch,H,W] -> float32 features [K,B,D]."""
        return self._forward("features", x, train)

    def logits(self, x: Tensor, train: bool = False) -> Tensor:
        """x float [B,ch,H,W] (shared) or [K,B,ch,H,W] -> float32 logits [K,B,C]."""
        return self._forward("logits", x, train)

    def observed(
        self, x: Tensor, looks: Looks, key: Hashable = None, output: bool = False
    ) -> tuple[Tensor, dict[str, Any]]:
        """Logits [B,C] of network 0 in evaluation mode, and looks[n](input of module n), by name.

        A look is taken at the call, before anything can change the input in place; or, with
        `output`, at what the module gives. With a `key` that stands for these looks, compiled
        where the runtime says so.
        Gradient: through both. Raises: StillroomError for a module that is not there or never
        called.
        """
        self._mode(train=False)
        params, buffers = map(prefixed, self.member(0))
        if key is not None and self.nets.rt.compile:
            logits, seen = self.nets.watched(looks, key)(params, buffers, x)
        else:
            net = Watched(self.nets.skeleton, looks, output)
            try:
                logits, seen = functional_call(net, (params, buffers), (x,))
            finally:
                net.close()
        if lost := [n for n in looks if n not in seen]:
            raise StillroomError(f"arch={self.nets.arch.name} never calls its layer {lost[0]}")
        return logits, {n: seen[n] for n in looks}

    def grads(self, x: Tensor, y: Tensor) -> list[Params]:
        """Weight gradients of the mean cross-entropy, one dict a network, without a graph.

        Through autograd, which compiles forward and backward apart and chooses what to keep between
        them. Only `match` needs `torch.func.grad`, whose one compiled function cannot choose.
        """
        compute = self._function("loss", train=True)
        found = []
        for i in range(self.k):
            params, buffers = self.member(i)
            leaves = {n: p.detach().requires_grad_() for n, p in params.items()}
            with torch.enable_grad(), self.nets.rt.autocast():
                value = compute(leaves, buffers, x.detach(), y)
            slopes = torch.autograd.grad(value, list(leaves.values()))
            found.append(dict(zip(leaves, slopes, strict=True)))
        return found

    def match(
        self, x: Tensor, y: Tensor, target: Sequence[Params], distance: Callable[..., Tensor]
    ) -> Tensor:
        """Mean over networks of distance(gradient on (x, y), target), differentiable in x.

        Value and image gradient leave one function, compiled where the runtime says so, through
        `Precomputed`; so nothing compiled is ever differentiated twice. `distance` takes two dicts
        of gradients by parameter name and returns a scalar.
        """

        def make() -> Callable[..., tuple[Tensor, Tensor]]:
            weight_gradient = grad(self._plain("loss"))

            def compute(p: Params, b: Params, x: Tensor, y: Tensor, t: Params) -> Any:
                return grad_and_value(lambda z: distance(weight_gradient(p, b, z, y), t))(x)

            return compute

        # Second order stays in float32 whatever the numerics: bf16 changes this gradient by 8 %.
        self._mode(train=True)
        compute = self.nets.checked(("match", distance, self.frozen), make)
        terms = []
        for i in range(self.k):
            slope, value = compute(*self.member(i), x.detach(), y, target[i])
            terms.append(precomputed(x, value.detach(), slope.detach()))
        return torch.stack(terms).mean()

    # -- internals -----------------------------------------------------------------------------

    def _forward(self, what: str, x: Tensor, train: bool) -> Tensor:
        own = x.ndim == 5  # every network has a batch of its own
        with self.nets.rt.autocast():
            if self.stacked:
                out: Tensor = self._mapped(what, train, own)(self.params[0], self.buffers[0], x)
            else:
                call = self._function(what, train)
                out = torch.stack(
                    [
                        self._pieces(call, *self.member(i), x[i] if own else x, train)
                        for i in range(self.k)
                    ]
                )
        return out.to(self.nets.rt.dtype)

    def _pieces(
        self, call: Callable[..., Tensor], p: Params, b: Params, x: Tensor, train: bool
    ) -> Tensor:
        """Without a graph, run in pieces of one fixed size; padded, so that one shape compiles."""
        whole = torch.is_grad_enabled() and (
            x.requires_grad or next(iter(p.values())).requires_grad
        )
        splits = not (train and self.nets.has_batchnorm())
        size = self.nets.piece()
        if whole or not splits or len(x) <= size:
            whole_batch: Tensor = call(p, b, x)
            return whole_batch
        parts = [call(p, b, piece) for piece in padded(x, size)]
        return torch.cat(parts)[: len(x)]

    def _mode(self, train: bool) -> None:
        skeleton = self.nets.skeleton
        if skeleton.training != train or self.nets.has_batchnorm():
            skeleton.train(train)
        if train and self.frozen:
            for layer in batchnorms(skeleton):
                layer.eval()

    def _function(self, what: str, train: bool) -> Callable[..., Any]:
        self._mode(train)
        mode = "frozen" if train and self.frozen else str(train)
        return self.nets.function(f"{what}:{mode}", lambda: self._plain(what))

    def _mapped(self, what: str, train: bool, own: bool) -> Callable[..., Tensor]:
        """All networks as one call, never compiled.

        A compiled function inside vmap makes dynamo give up on its code for good, so that the same
        code run in turn is not compiled either; compiled as a whole, it is slower than eager (CPU).
        """
        self._mode(train)
        axes = (0, 0, 0 if own else None)
        return vmap(self._plain(what), in_dims=axes, randomness="different")

    def _plain(self, what: str) -> Callable[..., Any]:
        skeleton = self.nets.skeleton
        if what == "features":
            wrapped = Features(skeleton)
            return lambda p, b, x: functional_call(wrapped, (prefixed(p), prefixed(b)), (x,))
        if what == "logits":
            return lambda p, b, x: functional_call(skeleton, (p, b), (x,))

        def loss(p: Params, b: Params, x: Tensor, y: Tensor) -> Tensor:
            return F.cross_entropy(functional_call(skeleton, (p, b), (x,)).to(x.dtype), y)

        return loss
