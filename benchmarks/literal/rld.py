"""RLD as the paper writes it (Sun et al., ICCV 2025), the slow way. B batch, K classes."""

import torch
import torch.nn.functional as F


def rld(logit_s, logit_t, labels, alpha=1.0, beta=8.0, T=4.0, alpha_T=4.0):
    """Refined logits: confidence and masked correlation: (B, K), (B, K), (B,) -> scalar."""
    p, q = F.softmax(logit_s / alpha_T, dim=1), F.softmax(logit_t / alpha_T, dim=1)
    p = p.gather(1, labels[:, None])
    q = q.max(dim=1, keepdim=True).values
    p, q = torch.cat([p, 1 - p], dim=1), torch.cat([q, 1 - q], dim=1)  # (B, 2)
    confidence = alpha_T**2 * F.kl_div(p.log(), q, reduction="batchmean")

    mask = logit_t >= logit_t.gather(1, labels[:, None])  # (B, K)
    losses = []
    for s, t, masked in zip(logit_s / T, logit_t / T, mask):
        log_p, log_q = F.log_softmax(s[~masked], dim=0), F.log_softmax(t[~masked], dim=0)
        losses.append((log_q.exp() * (log_q - log_p)).sum())
    return alpha * confidence + beta * T**2 * torch.stack(losses).mean()
