"""BatchNorm over the images of all processes, on any device. C channels."""

import torch
import torch.distributed as dist
from torch import Tensor, nn

from engine.distributed import world_size


def synchronise(network: nn.Module) -> nn.Module:
    """Let every BatchNorm2d of a network see the whole batch; names and weights stay."""
    for module in network.modules():
        if type(module) is nn.BatchNorm2d and world_size() > 1:
            module.__class__ = SyncBatchNorm2d
    return network


class SyncBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm over the shares of all processes, on any device: torch's own needs a GPU."""

    def forward(self, x: Tensor) -> Tensor:
        """(b, C, H, W) -> (b, C, H, W)"""
        if not self.training:
            return super().forward(x)
        wide = x.to(self.running_mean.dtype)  # float32 under autocast too
        count = AllReduce.apply(wide.new_tensor([wide[:, 0].numel()]))
        mean = AllReduce.apply(wide.sum(dim=(0, 2, 3))) / count  # (C,)
        centred = wide - mean[:, None, None]
        var = AllReduce.apply(centred.square().sum(dim=(0, 2, 3))) / count
        if self.track_running_stats:
            self.track(mean, var * count / (count - 1))
        scale = self.weight * (var + self.eps).rsqrt()
        return (centred * scale[:, None, None] + self.bias[:, None, None]).to(x.dtype)

    @torch.no_grad()
    def track(self, mean: Tensor, var: Tensor) -> None:
        """Move the running statistics towards those of a batch, (C,) each."""
        self.num_batches_tracked += 1
        momentum = self.momentum
        if momentum is None:
            momentum = 1 / float(self.num_batches_tracked)
        self.running_mean.lerp_(mean, momentum)
        self.running_var.lerp_(var, momentum)


class AllReduce(torch.autograd.Function):
    """Sum over the processes, in either direction."""

    @staticmethod
    def forward(ctx, x):
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx, gradient):
        total = gradient.contiguous().clone()
        dist.all_reduce(total)
        return total
