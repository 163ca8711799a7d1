"""Networks from elsewhere with the interface of ours: their features are found in one forward pass.

B batch, C channels, H x W map, K classes.
"""

import importlib
from typing import NamedTuple

import torch
from torch import Tensor, nn

from helper.errors import UserError

from . import MODELS
from .base import Classifier, Features

ACTIVATIONS = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Mish, nn.Hardswish,
)  # fmt: skip
ELSEWHERE = "torchvision:NAME, timm:NAME or package.module:function"


def build(name: str, num_classes: int, image_size: int = 32) -> Classifier:
    """A new network by its name: one of MODELS, or torchvision:NAME and the like.

    Raises UserError for an unknown name, a package that is not installed and a network that is no
    classifier.
    """
    if ":" not in name:
        try:
            return MODELS[name](num_classes)
        except UserError as error:
            raise UserError(f"{error}; or {ELSEWHERE}") from None
    source, _, rest = name.partition(":")
    makers = {"torchvision": from_torchvision, "timm": from_timm}
    network = makers.get(source, from_module)(name, rest, num_classes)
    return Wrapped(network, name, num_classes, image_size)


def check_name(name: str) -> None:
    """UserError where `build` would not know the name; builds nothing."""
    source, _, rest = name.partition(":")
    if ":" not in name:
        try:
            MODELS[name]
        except UserError as error:
            raise UserError(f"{error}; or {ELSEWHERE}") from None
    elif source == "torchvision":
        check_torchvision(name, rest)
    elif source == "timm":
        import_timm(name, rest)
    else:
        import_function(name, rest)


def learning_rate(name: str) -> float:
    """What the recipe starts the network called `name` at."""
    if name not in MODELS:
        return Classifier.learning_rate
    entry = MODELS[name]
    return getattr(entry, "func", entry).learning_rate  # of functools.partial, its class


def from_torchvision(name: str, rest: str, num_classes: int) -> nn.Module:
    """`torchvision:NAME`, a classifier without pretrained weights."""
    torchvision = check_torchvision(name, rest)
    return torchvision.models.get_model(rest, weights=None, num_classes=num_classes)


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
    parents: tuple[str, ...]  # the modules that were running around it

    @property
    def area(self) -> int:
        """H * W of the output (B, C, H, W), 0 if it is no square map: (B, H, W, C) is none."""
        shape = self.output.shape
        return shape[2] * shape[3] if len(shape) == 4 and shape[2] == shape[3] else 0


class Tap(NamedTuple):
    """Where a feature is read in every later forward pass: the input or output of a call."""

    name: str
    number: int  # of the call, see `Call`
    side: str  # "input" or "output"
    relu: bool = False  # the network applies ReLU by a function, which no hook sees

    @property
    def label(self) -> str:
        """The module for a message: 'layer1', or 'relu[2]' for the third call of one module."""
        name = f"{self.name}[{self.number}]" if self.number else self.name
        return f"relu of {name}" if self.relu else name


class Wrapped(Classifier):
    """A network whose stages, last map, pooled vector and classifier are found in a forward pass.

    A stage is the last map of each resolution. The state dict is that of the network alone.
    Activations no longer work in place, since they would overwrite pre-activations.

    Raises UserError for a network that cannot read images of this size, whose output is not
    (B, num_classes), or is not that of a linear layer.
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

        calls, output = record_calls(network, name, image_size)
        if not isinstance(output, Tensor) or output.shape != (2, num_classes):
            shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
            raise UserError(f"{name} gives {shape} for 2 images, not (2, {num_classes})")
        linear = [c for c in calls if isinstance(c.module, nn.Linear) and c.output is output]
        if not linear:
            raise UserError(f"{name}: its output is not that of a torch.nn.Linear, the classifier")
        head = linear[-1]
        self.head_name = head.name
        self._pooled = Tap(head.name, head.number, "input")
        self._last_map, min_area = find_last_map(calls, head.input)
        self._stem, stages = find_stages(calls, min_area)
        self._stages = tuple(Tap(c.name, c.number, "output") for c in stages)
        self._stage_shapes = tuple(tuple(c.output.shape[1:]) for c in stages)  # (C, H, W) each
        self._preacts = tuple(find_preact(calls, c) for c in stages)
        self._norms = tuple(find_norm(calls, c) for c in stages)
        after = calls[calls.index(stages[-1]) + 1 :] if stages else [head]
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
        taps = {self._pooled, self._last_map, self._stem, *self._stages, *self._preacts} - {None}
        found, numbers, handles = {}, {}, []

        def read(name, taps_here):
            def hook(module, args, output):
                number = numbers[name] = numbers.get(name, -1) + 1
                for tap in taps_here:
                    if tap.number == number:
                        tensor = args[0] if tap.side == "input" else output
                        found[tap] = torch.relu(tensor) if tap.relu else tensor

            return self.network.get_submodule(name).register_forward_hook(hook)

        try:
            for name in {tap.name for tap in taps}:
                handles.append(read(name, [tap for tap in taps if tap.name == name]))
            logits = self.network(x)
        finally:
            for handle in handles:
                handle.remove()
        if not isinstance(logits, Tensor):
            raise UserError(
                f"{type(self.network).__name__} gives {type(logits).__name__} in training, not a "
                "tensor: build it without auxiliary outputs, as package.module:function"
            )
        return Features(
            found.get(self._stem),
            tuple(found[tap] for tap in self._stages),
            tuple(found[tap] for tap in self._preacts),
            found.get(self._last_map),
            found[self._pooled],
            logits,
            self.head,
        )

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


def record_calls(network: nn.Module, name: str, image_size: int) -> tuple[list[Call], Tensor]:
    """Run a network in eval on two random images -> the calls of its modules as they end, output.

    Neither its state nor torch's generator is changed.
    """
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

    images = torch.randn(2, 3, image_size, image_size, generator=torch.Generator().manual_seed(0))
    was_training = [module for module in network.modules() if module.training]
    try:
        for module_name, module in network.named_modules():
            if module_name:
                handles.append(module.register_forward_pre_hook(before(module_name)))
                handles.append(module.register_forward_hook(after(module_name)))
        with torch.no_grad():
            output = network.eval()(images)
    except Exception as error:  # whatever somebody's network raises
        size = f"{image_size}x{image_size}"
        raise UserError(f"{name} cannot read {size} images: {error}; try --image_size") from error
    finally:
        for handle in handles:
            handle.remove()
        for module in was_training:
            module.training = True
    return calls, output


def find_last_map(calls: list[Call], pooled: Tensor) -> tuple[Tap | None, int]:
    """The largest map whose mean is `pooled` (B, C) -> where it is, and its H * W, else 1."""
    best, area = None, 1
    for call in reversed(calls):
        if call.area < area or call.output.shape[:2] != pooled.shape:
            continue
        for relu in (False, True):
            a_map = call.output.relu() if relu else call.output
            if torch.allclose(a_map.mean(dim=(2, 3)), pooled, rtol=1e-4, atol=1e-5):
                if best is None or call.area > area:
                    best, area = Tap(call.name, call.number, "output", relu), call.area
                break
    return best, area


def find_stages(calls: list[Call], min_area: int) -> tuple[Tap | None, list[Call]]:
    """The stem, which is the input of the second convolution, and the last call of each stage.

    A resolution is that of a stage if a layer with weights gave it, and it has H * W of `min_area`
    or more, and more than 1: the 1x1 maps of pooling and squeeze-and-excitation are no stages.
    """
    convolutions = [c for c in calls if isinstance(c.module, nn.Conv2d)]
    if len(convolutions) < 2:
        return None, []
    second = convolutions[1]
    later = [
        call
        for call in calls[calls.index(second) :]
        if call.area >= max(min_area, 2) and not in_downsampling_block(call, calls)
    ]
    last = {call.area: call for call in later}
    weighted = {c.area for c in later if any(True for _ in c.module.parameters(recurse=False))}
    stages = [last[area] for area in sorted(last, reverse=True) if area in weighted]
    return Tap(second.name, second.number, "input"), stages


def in_downsampling_block(call: Call, calls: list[Call]) -> bool:
    """Whether a map is inside a block that goes from this resolution to another.

    The block's input has this resolution, its output another, and no map inside has a third, as
    the maps of a network's trunk would have.
    """
    for block in calls:
        if block.name not in call.parents or not block.area or block.input.ndim != 4:
            continue
        area_in = block.input[0, 0].numel()
        inside = {c.area for c in calls if block.name in c.parents and c.area > 1}
        if area_in == call.area != block.area and len(inside | {block.area, area_in}) == 2:
            return True
    return False


def find_preact(calls: list[Call], stage: Call) -> Tap:
    """The input of the activation whose output is a stage's map; the map itself without one."""
    if activation := find_activation(calls, stage):
        return Tap(activation.name, activation.number, "input")
    return Tap(stage.name, stage.number, "output")


def find_activation(calls: list[Call], stage: Call) -> Call | None:
    """The call of an activation whose output is a stage's map."""
    ends = [c for c in calls if c.output is stage.output and isinstance(c.module, ACTIVATIONS)]
    return ends[0] if ends else None


def find_norm(calls: list[Call], stage: Call) -> str | None:
    """The BatchNorm whose output is a stage's pre-activation, by name.

    Where a block adds its shortcut to that output in place, as torchvision's ResNets do, it is the
    same tensor.
    """
    activation = find_activation(calls, stage)
    preact = activation.input if activation else stage.output
    norms = [c for c in calls if c.output is preact and isinstance(c.module, nn.BatchNorm2d)]
    return norms[0].name if norms else None
