"""BatchNorm over the images of all processes. B batch, b a process's share of it, C channels.

torch's own needs a GPU. Here is one for the CPU, with as many collective calls: one forward and one
backward a layer.
"""

import torch
import torch.distributed as dist
from torch import Tensor, nn

from engine.distributed import world_size


def synchronise(network: nn.Module, device: torch.device) -> nn.Module:
    """Let every BatchNorm2d of a network see the whole batch; modules, names and weights stay."""
    for module in network.modules():
        if type(module) is nn.BatchNorm2d and world_size() > 1:
            module.__class__ = SyncBatchNorm2d
            if device.type == "cuda":
                module.__class__, module.process_group = nn.SyncBatchNorm, None
    return network


class SyncBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm over the shares of all processes."""

    def forward(self, x: Tensor) -> Tensor:
        """(b, C, H, W) -> (b, C, H, W)"""
        if not self.training:
            return super().forward(x)
        wide = x.to(torch.promote_types(x.dtype, torch.float32))  # under autocast too
        y, mean, var, count = Normalise.apply(wide, self.eps)
        if self.track_running_stats:
            self.track(mean, var * count / (count - 1).clamp_min(1))
        if self.affine:
            y = y * self.weight[:, None, None] + self.bias[:, None, None]
        return y.to(x.dtype)

    @torch.no_grad()
    def track(self, mean: Tensor, var: Tensor) -> None:
        """Move the running statistics towards those of a batch, (C,) each."""
        self.num_batches_tracked += 1
        momentum = self.momentum
        if momentum is None:
            momentum = 1 / self.num_batches_tracked.to(mean.dtype)
        self.running_mean.lerp_(mean, momentum)
        self.running_var.lerp_(var, momentum)


class Normalise(torch.autograd.Function):
    """A share x (b, C, H, W) of a batch -> x^ = (x - mean) / sqrt(var + eps); mean and biased
    variance (C,) of the whole batch, and how many values of a channel it has, ().

    Each process sends mean, sum of squared differences from it, and count, which add up without
    cancellation (Chan et al., Updating Formulae and a Pairwise Algorithm, 1979). With g the
    gradient of x^ and means over the whole batch, that of x is

        (g - mean(g) - x^ * mean(g * x^)) / sqrt(var + eps).
    """

    @staticmethod
    def forward(ctx, x, eps):
        own = x.new_full((1,), x[:, 0].numel())
        mean = x.sum(dim=(0, 2, 3)) / own.clamp_min(1)  # 0 of an empty share
        squares = (x - mean[:, None, None]).square().sum(dim=(0, 2, 3))
        sent = torch.cat([mean, squares, own])
        received = [torch.empty_like(sent) for _ in range(world_size())]
        dist.all_gather(received, sent)
        means, squares, counts = torch.stack(received).split([len(mean), len(mean), 1], dim=1)
        count = counts.sum()
        mean = (means * counts).sum(dim=0) / count  # (C,)
        var = (squares + counts * (means - mean).square()).sum(dim=0) / count
        inverse_std = (var + eps).rsqrt()
        y = (x - mean[:, None, None]) * inverse_std[:, None, None]
        ctx.save_for_backward(y, inverse_std, count)
        ctx.mark_non_differentiable(mean, var, count)
        return y, mean, var, count

    @staticmethod
    def backward(ctx, gradient, *_):
        y, inverse_std, count = ctx.saved_tensors
        sums = torch.stack([gradient.sum(dim=(0, 2, 3)), (gradient * y).sum(dim=(0, 2, 3))])
        dist.all_reduce(sums)
        mean, along = (sums / count)[..., None, None]  # (C, 1, 1) each
        return (gradient - mean - y * along) * inverse_std[:, None, None], None
