"""Networks from elsewhere with the interface of ours: their features are found in one forward pass.

B batch, C channels, H x W map, K classes.
"""

import importlib
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from helper.errors import UserError

from . import MODELS
from .base import Classifier, Features
from .projected import PREFIX, Projected, parts_of

ACTIVATIONS = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Mish, nn.Hardswish,
)  # fmt: skip
WITHOUT_AUX = {"aux_logits": False, "init_weights": True}  # their outputs in training are no logits
OF_TORCHVISION = {"googlenet": WITHOUT_AUX, "inception_v3": WITHOUT_AUX}  # arguments
USUAL_SIZES = (32, 64, 96, 128, 192, 224, 256, 299, 384)
LARGE = 112  # pixels of a side from which on no network has 1x1 maps before its pooling
ELSEWHERE = "torchvision:NAME, timm:NAME or package.module:function"


def build(name: str, num_classes: int, image_size: int = 32) -> Classifier:
    """A new network by its name: one of MODELS, or torchvision:NAME and the like.

    Raises UserError for an unknown name, a package that is not installed and a network that is no
    classifier.
    """
    network = make(name, num_classes, image_size)
    network.name = name
    return network


def make(name: str, num_classes: int, image_size: int) -> Classifier:
    """As `build`, of a network that does not know its name."""
    if ":" not in name:
        try:
            return MODELS[name](num_classes)
        except UserError as error:
            raise UserError(f"{error}; or {ELSEWHERE}") from None
    if name.startswith(PREFIX):
        return projected(name, num_classes, image_size)
    source, _, rest = name.partition(":")
    makers = {"torchvision": from_torchvision, "timm": from_timm}
    network = makers.get(source, from_module)(name, rest, num_classes)
    return Wrapped(network, name, num_classes, image_size)


def projected(name: str, num_classes: int, image_size: int) -> Classifier:
    """`projected:NAME,CxHxW,FACTOR`, as `Projected` calls itself."""
    inner, shape, factor = parts_of(name)
    network = build(inner, num_classes, image_size).eval()
    weight = next(network.parameters())
    with torch.no_grad():
        last_map = network.features(weight.new_zeros(2, 3, image_size, image_size)).last_map
    if last_map is None:
        raise UserError(f"{name}: the classifier of {inner} does not read the mean of a map")
    return Projected(network, last_map.shape[1], shape, factor, num_classes).train()


def check_name(name: str) -> None:
    """UserError where `build` would not know the name; builds nothing."""
    source, _, rest = name.partition(":")
    if ":" not in name:
        try:
            MODELS[name]
        except UserError as error:
            raise UserError(f"{error}; or {ELSEWHERE}") from None
    elif name.startswith(PREFIX):
        check_name(parts_of(name)[0])
    elif source == "torchvision":
        check_torchvision(name, rest)
    elif source == "timm":
        import_timm(name, rest)
    else:
        import_function(name, rest)


def source_of(name: str) -> Any:
    """The class or function that makes a network, for its source; None for an installed one."""
    source, _, rest = name.partition(":")
    if ":" not in name:
        return maker_of(name) if name in MODELS else None
    if name.startswith(PREFIX):
        return source_of(parts_of(name)[0])
    return None if source in ("torchvision", "timm") else import_function(name, rest)


def maker_of(name: str) -> type[Classifier]:
    """The class of a network of ours."""
    entry = MODELS[name]
    return entry.func if isinstance(entry, partial) else entry


def learning_rate(name: str) -> float:
    """What the recipe starts the network called `name` at."""
    name = parts_of(name)[0] if name.startswith(PREFIX) else name
    return (maker_of(name) if name in MODELS else Classifier).learning_rate


def from_torchvision(name: str, rest: str, num_classes: int) -> nn.Module:
    """`torchvision:NAME`, a classifier without pretrained weights and auxiliary classifiers."""
    torchvision = check_torchvision(name, rest)
    more = OF_TORCHVISION.get(rest, {})
    return torchvision.models.get_model(rest, weights=None, num_classes=num_classes, **more)


def check_torchvision(name: str, rest: str):
    """torchvision; UserError where it has no such classifier."""
    from helper.vision import torchvision  # takes seconds to import

    if rest not in torchvision.models.list_models(torchvision.models):
        raise UserError(f"{name}: torchvision has no classifier {rest!r}")
    return torchvision


def from_timm(name: str, rest: str, num_classes: int) -> nn.Module:
    """`timm:NAME`, without pretrained weights."""
    timm = import_timm(name, rest)
    return timm.create_model(rest, pretrained=False, num_classes=num_classes)


def import_timm(name: str, rest: str):
    """timm; UserError where it is not installed or has no such model."""
    try:
        importlib.import_module("helper.vision")  # timm imports torchvision
        timm = importlib.import_module("timm")
    except ImportError:
        raise UserError(f"{name} needs the timm package: pip install timm") from None
    if not timm.is_model(rest):
        raise UserError(f"{name}: timm has no model {rest!r}")
    return timm


def from_module(name: str, rest: str, num_classes: int) -> nn.Module:
    """`package.module:function`, called with num_classes=K."""
    function = import_function(name, rest)
    try:
        network = function(num_classes=num_classes)
    except Exception as error:  # whatever somebody's function raises
        raise UserError(
            f"{name} cannot be called with num_classes={num_classes}: "
            f"{type(error).__name__}: {error}"
        ) from error
    if not isinstance(network, nn.Module):
        raise UserError(f"{name} gives {type(network).__name__}, not a torch.nn.Module")
    return network


def import_function(name: str, rest: str):
    """The function of `package.module:function`; UserError where there is none."""
    try:
        module = importlib.import_module(name.partition(":")[0])
    except Exception as error:  # whatever somebody's module raises
        raise UserError(f"{name} cannot be imported: {type(error).__name__}: {error}") from error
    if not hasattr(module, rest):
        raise UserError(f"{name}: the module has no {rest!r}")
    return getattr(module, rest)


class Call(NamedTuple):
    """One call of a module in the recorded forward pass."""

    name: str
    number: int  # of earlier calls of the same module
    module: nn.Module
    input: Tensor
    output: Tensor
    parents: tuple[str, ...]  # the modules that were running around it, from the outermost on
    channels_last: tuple[bool, bool] = (False, False)  # whether input and output are (B, H, W, C)

    @property
    def area(self) -> int:
        """H * W of the output, 0 if it is no square map."""
        return area(self.output)


class Tap(NamedTuple):
    """Where a feature is read in every later forward pass: the input or output of a call."""

    name: str
    number: int  # of the call, see `Call`
    side: str  # "input" or "output"
    relu: bool = False  # the network applies ReLU by a function, which no hook sees
    channels_last: bool = False  # the network has (B, H, W, C) there

    @property
    def label(self) -> str:
        """The module for a message: 'layer1', or 'relu[2]' for the third call of one module."""
        name = f"{self.name}[{self.number}]" if self.number else self.name
        return f"relu of {name}" if self.relu else name

    def read(self, x: Tensor) -> Tensor:
        """What the call took or gave -> the feature, a map as (B, C, H, W)."""
        x = torch.relu(x) if self.relu else x
        return x.permute(0, 3, 1, 2) if self.channels_last else x


class Wrapped(Classifier):
    """A network whose stages, last map, pooled vector and classifier are found in a forward pass.

    A stage is the last map of each resolution; the map whose mean is `pooled` is the last stage. A
    network that computes on tokens has none. The state dict is that of the network alone.
    Activations no longer work in place, since they would overwrite pre-activations.

    Raises UserError for a network that cannot read images of this size in eval and in training,
    whose output is not (B, num_classes), or is not that of a linear layer.
    """

    def __init__(self, network: nn.Module, name: str, num_classes: int, image_size: int):
        super().__init__()
        for module in network.modules():
            if getattr(module, "inplace", False) is True:
                module.inplace = False
        # The network's modules and parameters are also this one's, so that no key gets a prefix.
        self.__dict__["network"] = network
        for part in ("_modules", "_parameters", "_buffers", "_non_persistent_buffers_set"):
            self.__dict__[part] = getattr(network, part)
        self.declare_statistics()

        with unchanged(network):
            try:
                calls, output = record_calls(network.eval(), image_size)
            except Exception as error:  # whatever somebody's network raises
                raise UserError(cannot("read", name, image_size, error, network)) from error
            check_output(output, (2, num_classes), name)
            head = calls.index(find_head(calls, output, name))
            larger = record_larger(network, calls, image_size)
            self._find_features(calls, larger, head)
            try:
                network.train()
                found, output = self._run(random_images(image_size))
            except Exception as error:
                raise UserError(cannot("train on", name, image_size, error, network)) from error
            check_output(output, (2, num_classes), name, " in training")
            if missing := self._taps - set(found):
                raise UserError(f"{name} does not run {min(missing).label} in training")

    def _find_features(self, calls: list[Call], larger: list[Call] | None, head: int) -> None:
        """Set all taps. On larger images no map is 1x1: what is there as well is no map."""
        self.head_name = calls[head].name
        self._pooled = Tap(self.head_name, calls[head].number, "input")
        seen = with_layout(calls, larger or calls)  # one for one the same
        last_map = find_last_map(calls, seen, head, least=2 if larger else 1)
        self._stem, stages = find_stages(seen, last_map)
        self._last_map = tap(*last_map) if last_map else None
        self._stages = tuple(tap(*stage) for stage in stages)
        self._preacts = tuple(find_preact(seen, *stage) for stage in stages)
        self._norms = tuple(find_norm(seen, preact) for preact in self._preacts)
        all_taps = {self._pooled, self._last_map, self._stem, *self._stages, *self._preacts}
        self._taps = frozenset(all_taps - {None})

        maps = (t.read(calls[seen.index(c)].output) for t, (c, _) in zip(self._stages, stages))
        self._stage_shapes = tuple(tuple(x.shape[1:]) for x in maps)  # (C, H, W) each
        after = seen[seen.index(stages[-1][0]) + 1 :] if stages else [seen[head]]
        self._after_stages = {call.name for call in after if call.number == 0}

    @property
    def head(self):
        return self.network.get_submodule(self.head_name)

    def describe(self) -> str:
        """'stages: layer1 (64, 8, 8), layer2 (128, 4, 4); last map layer2; classifier fc'"""
        shapes = (str(shape) for shape in self._stage_shapes)
        stages = [f"{tap.label} {shape}" for tap, shape in zip(self._stages, shapes)]
        last_map = f"last map {self._last_map.label}" if self._last_map else "no last map"
        found = f"stages: {', '.join(stages)}" if stages else "no stages"
        return f"{found}; {last_map}; classifier {self.head_name}"

    def train(self, mode: bool = True):
        super().train(mode)
        self.network.training = mode
        return self

    def forward(self, x):
        return self.network(x)

    def features(self, x):
        found, logits = self._run(x)
        return Features(
            found.get(self._stem),
            tuple(found[tap] for tap in self._stages),
            tuple(found[tap] for tap in self._preacts),
            found.get(self._last_map),
            found[self._pooled],
            logits,
            self.head,
        )

    def _run(self, x: Tensor) -> tuple[dict[Tap, Tensor], Tensor]:
        """One forward pass -> what was found at every tap, the network's output."""
        tensors, numbers, handles = {}, {}, []

        def read(name, taps):
            def hook(module, args, output):
                number = numbers[name] = numbers.get(name, -1) + 1
                for tap in taps:
                    if tap.number == number:
                        tensors[tap] = args[0] if tap.side == "input" else output

            return self.network.get_submodule(name).register_forward_hook(hook)

        try:
            for name in {tap.name for tap in self._taps}:
                handles.append(read(name, [tap for tap in self._taps if tap.name == name]))
            output = self.network(x)
        finally:
            for handle in handles:
                handle.remove()
        # Only now, since what follows a module may work in place on its output.
        return {tap: tap.read(tensor) for tap, tensor in tensors.items()}, output

    def feature_parameters(self):
        return [
            parameter
            for name, parameter in self.named_parameters()
            if name.rpartition(".")[0] not in self._after_stages
        ]

    def preact_norms(self):
        if unknown := [tap.label for tap, name in zip(self._preacts, self._norms) if not name]:
            raise ValueError(
                f"{type(self.network).__name__} has no BatchNorm right before the activation of "
                f"{len(unknown)} of its {len(self._norms)} stages ({', '.join(unknown)})"
            )
        return tuple(self.network.get_submodule(name) for name in self._norms)


@contextmanager
def unchanged(network: nn.Module) -> Iterator[None]:
    """Leave modes and buffers of a network, and torch's generator, as they were; no gradients."""
    modes = [(module, module.training) for module in network.modules()]
    buffers = [
        (module._buffers, key, buffer, buffer.clone())
        for module in network.modules()
        for key, buffer in module._buffers.items()
        if buffer is not None
    ]
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training
        for where, key, buffer, value in buffers:
            where[key] = buffer if torch.equal(buffer, value) else buffer.copy_(value)


def cannot(do: str, name: str, image_size: int, error: Exception, network: nn.Module) -> str:
    """A line that says which images a network can read, where it is one of the usual sizes."""
    line = str(error).strip().partition("\n")[0] or type(error).__name__
    for size in USUAL_SIZES:
        try:
            calls, output = record_calls(network, size)
            find_head(calls, output, name)
        except UserError as refused:  # at any size
            return str(refused)
        except Exception:  # whatever somebody's network raises
            continue
        return (
            f"{name} cannot {do} {image_size}x{image_size} images, only others, as {size}x{size} "
            f"(--image_size): {line}"
        )
    return f"{name} cannot {do} {image_size}x{image_size} images: {line}"


def random_images(size: int) -> Tensor:
    """(2, 3, size, size), always the same."""
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))


def check_output(output, shape: tuple[int, int], name: str, when: str = "") -> None:
    """UserError where a network gives another shape, or something else than a tensor."""
    if not isinstance(output, Tensor):
        raise UserError(
            f"{name} gives {type(output).__name__} for 2 images{when}, not {shape}: build it "
            "without auxiliary outputs, as package.module:function"
        )
    if output.shape != shape:
        raise UserError(f"{name} gives {tuple(output.shape)} for 2 images{when}, not {shape}")


def record_calls(network: nn.Module, image_size: int) -> tuple[list[Call], Tensor]:
    """Run a network on two random images -> the calls of its modules as they end, its output."""
    calls, running, numbers, handles = [], [], {}, []

    def before(module_name):
        def hook(module, args):
            running.append(module_name)

        return hook

    def after(module_name):
        def hook(module, args, output):
            running.pop()
            number = numbers[module_name] = numbers.get(module_name, -1) + 1
            if isinstance(output, Tensor) and args and isinstance(args[0], Tensor):
                calls.append(Call(module_name, number, module, args[0], output, tuple(running)))

        return hook

    try:
        for module_name, module in network.named_modules():
            if module_name:
                handles.append(module.register_forward_pre_hook(before(module_name)))
                handles.append(module.register_forward_hook(after(module_name)))
        output = network(random_images(image_size))
    finally:
        for handle in handles:
            handle.remove()
    return calls, output


def record_larger(network: nn.Module, calls: list[Call], image_size: int) -> list[Call] | None:
    """The same calls on larger images, where no map before the pooling is 1x1.

    None where the network reads images of one size only, or computes otherwise on larger ones.
    Images that are large already need it only where C = H = W hides which of them is C.
    """
    large = image_size >= LARGE
    if large and not any(len(set(c.output.shape[1:])) == 1 for c in calls if c.area > 1):
        return calls
    try:
        larger, _ = record_calls(network, image_size + 32 if large else max(128, 2 * image_size))
    except Exception:  # whatever somebody's network raises
        larger = []
    names = [[(call.name, call.number) for call in some] for some in (calls, larger)]
    return larger if names[0] == names[1] else calls if large else None


def with_layout(calls: list[Call], larger: list[Call]) -> list[Call]:
    """The calls of `larger` with their `channels_last`, which the sizes of both passes show."""
    return [
        big._replace(
            channels_last=(
                is_channels_last(small.input, big.input),
                is_channels_last(small.output, big.output),
            )
        )
        for small, big in zip(calls, larger, strict=True)
    ]


def is_channels_last(*sizes: Tensor) -> bool:
    """Whether a map, seen in one size or more, is (B, H, W, C)."""
    first = all(area(x) and x.shape[2] == x.shape[3] for x in sizes)  # (B, C, H, W)
    return not first and all(area(x) and x.shape[1] == x.shape[2] for x in sizes)


def area(x: Tensor) -> int:
    """H * W of a square map (2, C, H, W) or (2, H, W, C), 0 if it is none."""
    if x.ndim != 4 or len(x) != 2 or x.shape[2] not in (x.shape[1], x.shape[3]):
        return 0
    return x.shape[2] ** 2


def tap(call: Call, relu: bool = False, side: str = "output") -> Tap:
    """The tap at one side of a call."""
    return Tap(call.name, call.number, side, relu, call.channels_last[side == "output"])


def has_parameters(module: nn.Module) -> bool:
    return any(True for _ in module.parameters())


def find_head(calls: list[Call], output: Tensor, name: str) -> Call:
    """The call of the classifier: the linear layer whose output is the network's."""
    linear = [c for c in calls if isinstance(c.module, nn.Linear) and c.output is output]
    if not linear:
        raise UserError(
            f"{name}: its output is not that of a torch.nn.Linear, the classifier: methods need "
            "the vector that such a layer reads"
        )
    return linear[-1]


def find_last_map(
    calls: list[Call], larger: list[Call], head: int, least: int
) -> tuple[Call, bool] | None:
    """The largest map whose mean is what `calls[head]` reads, (B, C), on both sizes of images.

    -> its last call of `larger`, and whether the network applies ReLU to it by a function. It has
    `least` pixels or more; one that is 1x1 is the output of a module with parameters, since others
    are what pooling made of it.
    """
    best, most = None, 0
    for i, call in reversed(list(enumerate(larger))):
        if call.area <= most or call.area < least:
            continue
        if call.area == 1 and not has_parameters(call.module):
            continue
        for relu in (False, True):
            read = tap(call, relu).read
            if all(is_mean(some[head].input, read(some[i].output)) for some in (calls, larger)):
                best, most = (call, relu), call.area
                break
    return best


def is_mean(pooled: Tensor, x: Tensor) -> bool:
    """Whether a vector (B, C) is the mean of a map (B, C, H, W)."""
    return x.shape[:2] == pooled.shape and torch.allclose(
        x.mean(dim=(2, 3)), pooled, rtol=1e-4, atol=1e-5
    )


def find_stages(
    calls: list[Call], last_map: tuple[Call, bool] | None
) -> tuple[Tap | None, list[tuple[Call, bool]]]:
    """The stem, and the last call of each stage in the network's order; none for tokens.

    A resolution is that of a stage if a layer with weights gave it. It is at least 1.5 times that
    of the next: a convolution without padding begins no stage. The last map ends the last one.
    """
    stem, start = find_stem(calls)
    if stem is None:
        return None, []
    end = calls.index(last_map[0]) if last_map else len(calls)
    side_paths = find_side_paths(calls)
    trunk = []
    for call in calls[start : end + 1]:
        if call.area < 2 or (call.name, call.area) in side_paths:
            continue
        grows = trunk and call.area > trunk[-1].area
        if not grows or has_parameters(call.module):  # adaptive pooling may enlarge a map
            trunk.append(call)
    weighted = {c.area for c in trunk if any(True for _ in c.module.parameters(recurse=False))}
    of_blocks = find_in_token_blocks(calls)
    last = {
        call.area: i
        for i, call in enumerate(trunk)
        if call.area in weighted and call.name not in of_blocks
    }
    stages = [last_map] if last_map else []
    for i in sorted(last.values(), reverse=True):
        if not stages or trunk[i].area >= 1.5**2 * stages[0][0].area:
            stages.insert(0, (trunk[i], False))
    if not last_map and stages and has_tokens(calls, calls.index(stages[-1][0])):
        return None, []
    return stem, stages


def find_stem(calls: list[Call]) -> tuple[Tap | None, int]:
    """The input of the first stage, and the number of the call where it begins.

    It is that of the outermost module around the second layer that is not around the first.
    None where it is no map.
    """
    layers = [i for i, c in enumerate(calls) if isinstance(c.module, (nn.Conv2d, nn.Linear))]
    if len(layers) < 2:
        return None, 0
    first, second = (calls[i] for i in layers[:2])
    later = calls[layers[1] :]
    for name in (*second.parents, second.name):
        block = next((c for c in later if c.name == name), None)
        if name not in first.parents and block and area(block.input):
            return tap(block, side="input"), layers[1]
    return None, 0


def find_side_paths(calls: list[Call]) -> set[tuple[str, int]]:
    """Calls (name, H * W) inside a block whose maps are not the network's at that resolution.

    Those of another resolution than the block's input and output, as in squeeze-and-excitation; and
    those of the input's resolution in a block that goes to another, without a third in between as
    the network's trunk would have.
    """
    inside = defaultdict(set)
    for call in calls:
        for parent in call.parents:
            inside[parent].add((call.name, call.area))
    side_paths = set()
    for block in calls:
        before, after = area(block.input), block.area
        if block.input is calls[0].input or not before or not after:
            continue
        areas = {a for _, a in inside[block.name] if a > 1}
        if before == after:
            side_paths |= {(name, a) for name, a in inside[block.name] if a != after}
        elif areas <= {before, after}:
            side_paths |= {(name, a) for name, a in inside[block.name] if a == before}
    return side_paths


def find_in_token_blocks(calls: list[Call]) -> set[str]:
    """Calls inside a block from tokens (B, N, C) to tokens: the maps there are its own."""
    blocks = {c.name for c in calls if c.input.ndim == c.output.ndim == 3}
    return {call.name for call in calls if blocks & set(call.parents)}


def has_tokens(calls: list[Call], end: int) -> bool:
    """Whether layers on tokens (B, N, C) are most of a network, behind its last stage `calls[end]`.

    Attention that only pools the last map is less.
    """
    maps = {call.name for call in calls if call.area}
    later = (c for c in calls[end + 1 :] if c.output.ndim == 3 and not maps & set(c.parents))
    before, behind = (
        sum(p.numel() for call in some for p in call.module.parameters(recurse=False))
        for some in (calls[: end + 1], later)
    )
    return behind > before


def find_preact(calls: list[Call], stage: Call, relu: bool) -> Tap:
    """What the activation whose output is a stage's map reads; the map itself without one."""
    if relu:
        return tap(stage)
    for call in calls:
        if call.output is stage.output and isinstance(call.module, ACTIVATIONS):
            return tap(call, side="input")
    for call in calls:  # ReLU as a function
        x = call.output
        if x.shape == stage.output.shape and (x < 0).any() and torch.equal(x.relu(), stage.output):
            return tap(call)
    return tap(stage)


def find_norm(calls: list[Call], preact: Tap) -> str | None:
    """The BatchNorm whose output is a pre-activation, by name.

    Where a block adds its shortcut to that output in place, as torchvision's ResNets do, it is the
    same tensor.
    """
    at = next(c for c in calls if (c.name, c.number) == (preact.name, preact.number))
    x = at.input if preact.side == "input" else at.output
    norms = [c for c in calls if c.output is x and isinstance(c.module, nn.BatchNorm2d)]
    return norms[0].name if norms else None
