"""A second device without one: tensors that say they are on `meta` and compute on the CPU.

Inside a `PretendedDevice`, what is made on or moved to `meta` keeps its numbers. An operation in
which it meets a CPU tensor of one or more dimensions raises, as with a GPU, and it is noted where
the host asks for a result or copies in a way that waits. Streams and memory are not pretended.
"""

import traceback
from pathlib import Path

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

DEVICE = torch.device("meta")
HOST = torch.device("cpu")
ROOT = str(Path(__file__).resolve().parents[2])
COPIES = {"_to_copy", "copy_"}
# Operations whose result, or its size, the host reads; those of linear algebra check for errors.
WAITS = {
    "_local_scalar_dense", "_unique2", "bincount", "equal", "is_nonzero", "linalg_cholesky",
    "_linalg_eigh", "_linalg_svd", "masked_select", "nonzero", "repeat_interleave",
    "unique_consecutive", "unique_dim",
}  # fmt: skip
BY_MASK = {"index", "index_put", "index_put_", "_index_put_impl_"}


class There(Tensor):
    """A CPU tensor that says it is on the device."""

    @staticmethod
    def __new__(cls, inner: Tensor):
        return Tensor._make_wrapper_subclass(
            cls, inner.shape, strides=inner.stride(), storage_offset=inner.storage_offset(),
            dtype=inner.dtype, device=DEVICE,
        )  # fmt: skip

    def __init__(self, inner: Tensor):
        self.inner = inner

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise RuntimeError(f"{func} outside of the pretended device")


class PretendedDevice(TorchDispatchMode):
    """The context in which the device is there.

    `waits` are the operations that the host waited for, in order, each with the place in the
    repository that asked: ("nonzero", "dataset/loader.py:batches").
    """

    def __init__(self):
        super().__init__()
        self.waits: list[tuple[str, str]] = []
        self.pinned: dict[int, Tensor] = {}  # by address
        self.literals = Literals()

    def __enter__(self):
        self.literals.__enter__()
        return super().__enter__()

    def __exit__(self, *error):
        super().__exit__(*error)
        self.literals.__exit__(*error)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        name = func._schema.name.removeprefix("aten::")
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        there = any(isinstance(x, There) for x in tensors)
        if name == "_pin_memory":
            return self.pin(args[0])
        if there and name not in COPIES:
            self.check_devices(name, tensors)
        if self.is_waited_for(name, args, kwargs):
            self.waits.append((name, place()))
        goes = torch.device(kwargs["device"]) if kwargs.get("device") is not None else None
        if goes == DEVICE:
            kwargs["device"] = HOST
        plain_args, plain_kwargs = tree_map(inner_of, (args, kwargs))
        result = func(*plain_args, **plain_kwargs)
        if func._schema.is_mutable and any(result is x for x in tree_leaves(plain_args)):
            return args[0]
        return tree_map(outer_of, result) if goes == DEVICE or (there and goes is None) else result

    def pin(self, tensor: Tensor) -> Tensor:
        pinned = tensor.clone()
        self.pinned[pinned.untyped_storage().data_ptr()] = pinned
        return pinned

    def is_pinned(self, tensor: Tensor) -> bool:
        return tensor.device == HOST and tensor.untyped_storage().data_ptr() in self.pinned

    @staticmethod
    def check_devices(name: str, tensors: list[Tensor]) -> None:
        strangers = [tuple(x.shape) for x in tensors if x.ndim and not isinstance(x, There)]
        if strangers:
            raise RuntimeError(f"{name}: the device meets CPU tensors {strangers} in {place()}")

    def is_waited_for(self, name: str, args, kwargs) -> bool:
        """Whether the host stops until the device has computed what an operation needs."""
        if name in COPIES:
            source = args[1] if name == "copy_" else args[0]
            goes = args[0].device if name == "copy_" else kwargs.get("device") or source.device
            if source.device == torch.device(goes):
                return False
            non_blocking = kwargs.get("non_blocking") or (name == "copy_" and args[2:] == (True,))
            return not (non_blocking and self.is_pinned(source))
        masks = args[1] if name in BY_MASK else ()
        by_mask = any(x is not None and x.dtype in (torch.bool, torch.uint8) for x in masks)
        return isinstance(args[0] if args else None, There) and (name in WAITS or by_mask)


class Literals(TorchFunctionMode):
    """`torch.tensor([1, 2], device=...)` is made on the CPU and copied, and `tolist` the reverse:
    below this they are no operations."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        goes = kwargs.pop("device", HOST) if func is torch.tensor else None
        if func is Tensor.tolist:
            args = (args[0].cpu(),)
        made = func(*args, **kwargs)
        return made.to(goes) if goes else made


def inner_of(x):
    return x.inner if isinstance(x, There) else x


def outer_of(x):
    return There(x) if isinstance(x, Tensor) else x


def place() -> str:
    """The innermost function of the repository that is running, tests aside."""
    for frame in reversed(traceback.extract_stack()):
        file = frame.filename.removeprefix(ROOT + "/")
        if file != frame.filename and not file.startswith((".venv", "tests/")):
            return f"{file}:{frame.name}"
    return "a test"
