"""AB as the paper writes it (Heo et al., AAAI 2019): one masked term a case.

B batch, C channels, H x W map.
"""


def hinge(s, t, margin):
    """Maps (B, C, H, W) before the activation -> scalar"""
    off = (s + margin).square() * ((s > -margin) & (t <= 0)).float()
    on = (s - margin).square() * ((s <= margin) & (t > 0)).float()
    return (off + on).abs().sum()


def abound(f_s, f_t, margin=1.0):
    """Maps (B, C, H, W) of n stages, student's and teacher's -> scalar"""
    n, total = len(f_s), 0
    for i, (s, t) in enumerate(zip(f_s, f_t, strict=True)):
        total = total + 2.0 ** (i - n + 1) * hinge(s, t, margin) / len(s) * 3 / 1000
    return total
