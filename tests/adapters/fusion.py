"""OFD and ReviewKD."""

from torch import nn

from distiller_zoo import ofd, reviewkd

from . import ADAPTERS, Subject
from .features import buffers, load, maps, of_parts, pairs


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


def full_ofd(case):
    kernel = case.hyper["kernel_size"]
    connectors = nn.ModuleList(
        ofd.connector(s.shape[1], t.shape[1], kernel) for s, t in pairs(case)
    )
    trained = load(connectors, case, "connectors.")

    def call():
        connected = [f(s) for f, s in zip(connectors, maps(case, "f_s"), strict=True)]
        low = margins(case)
        results = {"loss": ofd.ofd_loss(connected, maps(case, "f_t"), low)}
        return results | {f"out/margin.{i}": m for i, m in enumerate(low)}

    return Subject(call, trained, buffers(connectors, "connectors."))


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
    h = case.hyper
    module = reviewkd.fusions(h["in_channels"], h["out_channels"], h["mid_channel"])
    trained = load(module, case, "abfs.")

    def call():
        s = [*maps(case, "f_s"), case["pooled_s"][:, :, None, None]]
        t = [*maps(case, "f_t"), case["pooled_t"][:, :, None, None]]
        return of_parts(reviewkd.hcl_losses(reviewkd.fuse_levels(module, s, t), t))

    return Subject(call, trained, buffers(module, "abfs."))
