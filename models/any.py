"""Any other network behind the same contract: its features are found from its module tree.

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
    """A new network by its name, in the registry or elsewhere.

    Raises UserError for a name that is nowhere, a package that is not installed and a network
    that is no classifier.
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
    torchvision = check_torchvision(name, rest)
    return torchvision.models.get_model(rest, weights=None, num_classes=num_classes)


def check_torchvision(name: str, rest: str):
    """torchvision; UserError where it has no such classifier."""
    from helper.vision import torchvision  # takes seconds to import

    if rest not in torchvision.models.list_models(torchvision.models):
        raise UserError(f"{name}: torchvision has no classifier {rest!r}")
    return torchvision


def from_timm(name: str, rest: str, num_classes: int) -> nn.Module:
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
    """One execution of a module in the watched pass."""

    name: str
    turn: int  # how often the module had run before
    module: nn.Module
    read: Tensor
    gave: Tensor
    within: tuple[str, ...]  # the modules that were running around it

    @property
    def cells(self) -> int:
        """H * W of the map that it gave, 0 where it gave none; (B, H, W, C) is none: not square."""
        shape = self.gave.shape
        return shape[2] * shape[3] if len(shape) == 4 and shape[2] == shape[3] else 0


class Tap(NamedTuple):
    """Where a feature is taken from in every later pass."""

    name: str
    turn: int
    what: str  # "read" or "gave"
    relu: bool = False  # the network activates it by a function, which no hook sees


class Wrapped(Classifier):
    """A network whose stages, last map, pooled vector and classifier were found by watching a pass.

    Stages are the maps on which each resolution ends. The state dict is that of the network alone.
    Activations are kept from working in place, since they would overwrite pre-activations.

    Raises UserError for a network that cannot read such images, gives something else than
    (B, num_classes), or whose output is not that of a linear layer.
    """

    def __init__(self, network: nn.Module, name: str, num_classes: int, image_size: int):
        super().__init__()
        for module in network.modules():
            if getattr(module, "inplace", False) is True:
                module.inplace = False
        # Shared, not copied: what is in one is in the other, and no key gets a prefix.
        self.__dict__["network"] = network
        for part in ("_modules", "_parameters", "_buffers", "_non_persistent_buffers_set"):
            self.__dict__[part] = getattr(network, part)

        calls, output = watch(network, name, image_size)
        if not isinstance(output, Tensor) or output.shape != (2, num_classes):
            shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
            raise UserError(f"{name} gives {shape} for 2 images, not (2, {num_classes})")
        linear = [c for c in calls if isinstance(c.module, nn.Linear) and c.gave is output]
        if not linear:
            raise UserError(f"{name}: its output is not that of a torch.nn.Linear, the classifier")
        head = linear[-1]
        self.head_name = head.name
        self._pooled = Tap(head.name, head.turn, "read")
        self._last_map, smallest = find_last_map(calls, head.read)
        self._stem, ends = find_stages(calls, smallest)
        self._stages = tuple(Tap(c.name, c.turn, "gave") for c in ends)
        self._preacts = tuple(find_preact(calls, c) for c in ends)
        behind = calls[calls.index(ends[-1]) + 1 :] if ends else [head]
        self._behind = {call.name for call in behind if call.turn == 0}

    @property
    def head(self):
        return self.network.get_submodule(self.head_name)

    def train(self, mode: bool = True):
        super().train(mode)
        self.network.training = mode
        return self

    def forward(self, x):
        return self.network(x)

    def features(self, x):
        taps = {self._pooled, self._last_map, self._stem, *self._stages, *self._preacts} - {None}
        found, turns, handles = {}, {}, []

        def note(name, wanted):
            def hook(module, args, gave):
                turn = turns[name] = turns.get(name, -1) + 1
                for tap in wanted:
                    if tap.turn == turn:
                        taken = args[0] if tap.what == "read" else gave
                        found[tap] = torch.relu(taken) if tap.relu else taken

            return self.network.get_submodule(name).register_forward_hook(hook)

        try:
            for name in {tap.name for tap in taps}:
                handles.append(note(name, [tap for tap in taps if tap.name == name]))
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
            if name.rpartition(".")[0] not in self._behind
        ]


def watch(network: nn.Module, name: str, image_size: int) -> tuple[list[Call], Tensor]:
    """Run two random images through a network in eval -> its calls as they ended, its output.

    Neither its state nor torch's generator is changed.
    """
    calls, running, turns, handles = [], [], {}, []

    def before(module_name):
        def hook(module, args):
            running.append(module_name)

        return hook

    def after(module_name):
        def hook(module, args, gave):
            running.pop()
            turn = turns[module_name] = turns.get(module_name, -1) + 1
            if isinstance(gave, Tensor) and args and isinstance(args[0], Tensor):
                calls.append(Call(module_name, turn, module, args[0], gave, tuple(running)))

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
    """The largest map whose mean is `pooled` (B, C) -> where it is, its number of cells (or 1)."""
    best, cells = None, 1
    for call in reversed(calls):
        if call.cells < cells or call.gave.shape[:2] != pooled.shape:
            continue
        for relu in (False, True):
            a_map = call.gave.relu() if relu else call.gave
            if torch.allclose(a_map.mean(dim=(2, 3)), pooled, rtol=1e-4, atol=1e-5):
                if best is None or call.cells > cells:
                    best, cells = Tap(call.name, call.turn, "gave", relu), call.cells
                break
    return best, cells


def find_stages(calls: list[Call], smallest: int) -> tuple[Tap | None, list[Call]]:
    """What the second convolution reads, and the call on which each later resolution ends.

    A resolution is a stage's if a layer with weights gave it and it has at least `smallest` cells
    and more than one: the 1x1 maps of pooling and of squeeze-and-excitation are none.
    """
    convolutions = [c for c in calls if isinstance(c.module, nn.Conv2d)]
    if len(convolutions) < 2:
        return None, []
    second = convolutions[1]
    later = [
        call
        for call in calls[calls.index(second) :]
        if call.cells >= max(smallest, 2) and not passing(call, calls)
    ]
    ends = {call.cells: call for call in later}
    weighted = {c.cells for c in later if any(True for _ in c.module.parameters(recurse=False))}
    stages = [ends[cells] for cells in sorted(ends, reverse=True) if cells in weighted]
    return Tap(second.name, second.turn, "read"), stages


def passing(call: Call, calls: list[Call]) -> bool:
    """Whether a map belongs to a block on its way from this resolution to one smaller.

    Such a block reads this size, gives another and has no third inside; a trunk has more.
    """
    for outer in calls:
        if outer.name not in call.within or not outer.cells or outer.read.ndim != 4:
            continue
        enters = outer.read[0, 0].numel()
        inside = {c.cells for c in calls if outer.name in c.within and c.cells > 1}
        if enters == call.cells != outer.cells and len(inside | {outer.cells, enters}) == 2:
            return True
    return False


def find_preact(calls: list[Call], stage: Call) -> Tap:
    """What the activation that gave a stage's map had read; the map itself where there is none."""
    for call in calls:
        if call.gave is stage.gave and isinstance(call.module, ACTIVATIONS):
            return Tap(call.name, call.turn, "read")
    return Tap(stage.name, stage.turn, "gave")
