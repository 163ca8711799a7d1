"""OFD and ReviewKD."""

from copy import deepcopy
from types import SimpleNamespace

from torch import nn

from distiller_zoo import ofd, reviewkd

from . import ADAPTERS, Subject
from .features import buffers, load, maps, method_of, of_parts, passes


@ADAPTERS.register("ofd")
def of_ofd(case):
    return {"partial_l2": partial_l2, "margin": margins_alone, "full": full_ofd}[
        case.hyper["stage"]
    ](case)


def partial_l2(case):
    inputs = case["f_s"], case["f_t"], case["margin"]
    return Subject(lambda: {"loss": ofd.partial_l2(*inputs)})


def margins(case):
    norms = range(len(case.hyper["t_channels"]))
    state = [[case.state(f"teacher_bn.{i}.{what}") for what in ("weight", "bias")] for i in norms]
    return [ofd.margin(*pair) for pair in state]


def margins_alone(case):
    return Subject(lambda: {f"out/margin.{i}": m for i, m in enumerate(margins(case))})


def teacher_with_norms(case):
    """A network of which only the BatchNorms before its activations are known."""
    norms = []
    for i, channels in enumerate(case.hyper["t_channels"]):
        norm = nn.BatchNorm2d(channels).to(case.dtype)
        for what in ("weight", "bias"):
            getattr(norm, what).data = case.state(f"teacher_bn.{i}.{what}")
        norms.append(norm)
    return SimpleNamespace(preact_norms=lambda: tuple(norms))


def full_ofd(case):
    options = ofd.OFD.Options(ofd_kernel=case.hyper["kernel_size"])
    method = method_of(ofd.OFD, options, case, teacher_with_norms(case))
    trained = load(method.connectors, case, "connectors.")

    def call():
        low = {f"out/margin.{i}": m for i, m in enumerate(margins(case))}
        return {"loss": method(*passes(case), None), **low}

    return Subject(call, trained, buffers(method.connectors, "connectors."))


@ADAPTERS.register("reviewkd")
def of_reviewkd(case):
    return {"hcl": context, "abf": fusion, "full": full_review}[case.hyper["stage"]](case)


def context(case):
    s, t = maps(case, "f_s"), maps(case, "f_t")
    return Subject(lambda: of_parts(reviewkd.hcl_losses(s, t)))


def fusion(case):
    h = case.hyper
    module = reviewkd.Fusion(h["in_channel"], h["mid_channel"], h["out_channel"], h["fuse"])
    trained = load(module, case, "abf.")

    def call():
        below = case["residual"] if h["fuse"] else None
        y, x = module(case["f_s"], below, (h["out_shape"],) * 2)
        loss = (y * case["probe_y"]).sum() + (x * case["probe_x"]).sum()
        return {"loss": loss, "out/y": y, "out/x": x}

    return Subject(call, trained, buffers(module, "abf."))


def full_review(case):
    options = reviewkd.ReviewKD.Options(review_channels=case.hyper["mid_channel"])
    method = method_of(reviewkd.ReviewKD, options, case)
    trained = load(method.fusions, case, "abfs.")

    def call():
        s, t = passes(case)
        levels = method.levels_of_student(s), method.levels_of_teacher(t)
        fusions = deepcopy(method.fusions)  # whose pass moves no statistics of the method
        parts = reviewkd.hcl_losses(reviewkd.fuse_levels(fusions, *levels), levels[1])
        return {**of_parts(parts), "loss": method(s, t, None)}

    return Subject(call, trained, buffers(method.fusions, "abfs."))
