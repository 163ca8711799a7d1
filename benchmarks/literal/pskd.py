"""PS-KD as the paper writes it (Kim et al., ICCV 2021). B batch, K classes, N samples."""

import torch
import torch.nn.functional as F


def pskd(logit_s, labels, index, past, share):
    """Cross-entropy with the label and the past prediction mixed; `past` (N, K) is replaced."""
    target = (1 - share) * torch.eye(logit_s.shape[1], dtype=logit_s.dtype)[labels.cpu()]
    target = target.to(logit_s.device) + share * past[index]
    loss = (-target * F.log_softmax(logit_s, dim=1)).mean(dim=0).sum()
    past[index] = F.softmax(logit_s, dim=1).detach()
    return loss
