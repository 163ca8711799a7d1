"""ITRD as the paper writes it (Miles et al., BMVC 2022), the slow way. B batch, C channels."""

import torch
import torch.nn.functional as F


def correlation(f_s, f_t, alpha=1.5):
    """Embedded student and teacher (B, C) -> scalar"""
    s, t = ((x - x.mean(dim=0)) / x.std(dim=0) for x in (f_s, f_t))
    cross = torch.einsum("bx,by->xy", s, t) / len(s)  # (C, C), of which the diagonal is used
    return torch.log2((torch.diag(cross) - 1).abs().pow(2 * alpha).sum())


def mutual(f_s, f_t):
    """(B, C), (B, C') -> scalar"""
    s, t = F.normalize(f_s, dim=1), F.normalize(f_t, dim=1)
    gram_s, gram_t = s @ s.T, t @ t.T
    gram_st = gram_s * gram_t
    gram_s, gram_st = gram_s / torch.trace(gram_s), gram_st / torch.trace(gram_st)
    return gram_s.pow(2).sum() - gram_st.pow(2).sum()
