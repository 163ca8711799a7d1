"""Which operations a computation issues, and whether a GPU has deterministic kernels for them."""

from torch.utils._python_dispatch import TorchDispatchMode

# Those that torch.use_deterministic_algorithms names as raising an error on a GPU.
WITHOUT_DETERMINISTIC_KERNEL = frozenset({
    "_adaptive_avg_pool2d_backward", "_adaptive_avg_pool3d_backward", "_ctc_loss_backward",
    "_embedding_bag", "_upsample_bicubic2d_aa_backward", "_upsample_bilinear2d_aa_backward",
    "adaptive_max_pool2d_backward", "adaptive_max_pool3d_backward", "avg_pool3d_backward",
    "fractional_max_pool2d_backward", "fractional_max_pool3d_backward", "grid_sampler_2d_backward",
    "grid_sampler_3d_backward", "histc", "kthvalue", "max_unpool2d", "max_unpool3d",
    "median.dim", "nanmedian.dim", "nll_loss2d_backward", "nll_loss2d_forward", "put", "put_",
    "reflection_pad1d_backward", "reflection_pad2d_backward", "reflection_pad3d_backward",
    "upsample_bicubic2d_backward", "upsample_bilinear2d_backward", "upsample_linear1d_backward",
    "upsample_trilinear3d_backward",
})  # fmt: skip


class Issued(TorchDispatchMode):
    """Collects the operations that a GPU would refuse under --deterministic."""

    def __init__(self):
        super().__init__()
        self.refused: set[str] = set()
        self.seen: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = str(func).removeprefix("aten.")  # 'median.dim'
        self.seen.add(name)
        if is_refused(name, args, kwargs or {}):
            self.refused.add(name)
        return func(*args, **(kwargs or {}))


def is_refused(name: str, args, kwargs) -> bool:
    plain = name.partition(".")[0]
    if plain in ("cumsum", "cumsum_"):
        return kwargs.get("dtype", args[0].dtype).is_floating_point
    if plain == "bincount":
        return (*args, None)[1] is not None or kwargs.get("weights") is not None
    if plain.startswith("scatter_reduce"):
        return "prod" in (*args, kwargs.get("reduce"))
    return not {name, plain}.isdisjoint(WITHOUT_DETERMINISTIC_KERNEL)
