"""Methods with a first stage: FSP, AB, FT."""

from torch import nn

from distiller_zoo import abound, factor, fsp

from . import ADAPTERS, Subject
from .features import buffers, load, maps, of_parts, pairs, register


@register("fsp")
def of_fsp(case):
    return of_parts(fsp.flow_losses(maps(case, "f_s"), maps(case, "f_t")))


@ADAPTERS.register("abound")
def of_abound(case):
    s, t = maps(case, "f_s"), maps(case, "f_t")
    connectors = nn.ModuleList(abound.connector(a.shape, b.shape) for a, b in pairs(case))
    trained = load(connectors, case, "connectors.")

    def call():
        connected = [f(a) for f, a in zip(connectors, s, strict=True)]
        results = of_parts(abound.boundary_losses(connected, t, case.hyper["margin"]))
        return results | {f"out/connected.{i}": c for i, c in enumerate(connected)}

    return Subject(call, trained, buffers(connectors, "connectors."))


@ADAPTERS.register("factor")
def of_factor(case):
    return {"loss": bare, "paraphraser": paraphraser, "translator": translator, "full": full}[
        case.hyper["stage"]
    ](case)


def bare(case):
    s, t, h = case["factor_s"], case["factor_t"], case.hyper
    return Subject(lambda: {"loss": factor.difference(s, t, h["p1"], h["p2"])})


def paraphraser(case):
    module = factor.Paraphraser(case["f_t"].shape[1], case.hyper["k"])
    trained = load(module, case, "paraphraser.")

    def call():
        factors = module.encoder(case["f_t"])
        rebuilt = module.decoder(factors)
        loss = nn.functional.mse_loss(rebuilt, case["f_t"])
        return {"loss": loss, "out/factor": factors, "out/reconstruction": rebuilt}

    return Subject(call, trained)


def translator(case):
    h = case.hyper
    module = factor.Translator(h["s_shape"][1], int(h["t_shape"][1] * h["k"]))
    trained = load(module, case, "translator.")

    def call():
        factors = module.encoder(case["f_s"])
        return {"loss": (factors * case["probe"]).sum(), "out/factor": factors}

    return Subject(call, trained, buffers(module, "translator."))


def full(case):
    h = case.hyper
    frozen = factor.Paraphraser(case["f_t"].shape[1], h["k"]).requires_grad_(False)
    load(frozen, case, "paraphraser.")
    module = factor.Translator(case["f_s"].shape[1], frozen.factors)
    trained = load(module, case, "translator.")

    def call():
        s, t = module.encoder(case["f_s"]), frozen.encoder(case["f_t"])
        return {
            "loss": factor.difference(s, t, h["p1"], h["p2"]),
            "out/factor_s": s,
            "out/factor_t": t,
        }

    return Subject(call, trained, buffers(module, "translator."))
