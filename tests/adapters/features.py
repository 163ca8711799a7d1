"""Methods that read maps or pooled vectors and keep no state: their cores, and what they train."""

import torch
from torch import nn

from distiller_zoo import attention, correlation, nst, pkt, rkd, similarity, vid
from distiller_zoo.base import Setup
from models.adapters import Regressor
from models.base import Features

from . import ADAPTERS, Subject


def maps(case, name: str) -> list:
    """f_s.0, f_s.1, ... in network order."""
    return [case[key] for key in case.entry["inputs"] if key.startswith(f"{name}.")]


def passes(case) -> tuple[Features, Features]:
    """The student's and the teacher's maps and pooled vectors as features of one pass each.

    The reference does not tell maps before their activation from those behind it.
    """
    found = []
    for who in ("s", "t"):
        every = tuple(maps(case, f"f_{who}")) or (case[f"f_{who}"],)
        pooled = case[f"pooled_{who}"] if f"pooled_{who}" in case.entry["inputs"] else None
        found.append(Features(None, every, every, every[-1], pooled, None, None))
    return tuple(found)


def method_of(cls, options, case, teacher_net=None):
    """The method that those features make."""
    return cls(options, Setup(*passes(case), None, teacher_net, None)).to(case.dtype)


def pairs(case):
    return list(zip(maps(case, "f_s"), maps(case, "f_t"), strict=True))


def load(module: nn.Module, case, prefix: str) -> dict:
    """Give a module the case's weights -> its parameters by their name in the case's state."""
    names = [name for name in case.entry["state"] if name.startswith(prefix)]
    module.to(case.dtype).load_state_dict({n.removeprefix(prefix): case.state(n) for n in names})
    module.train(case.hyper.get("training", True))
    return {f"{prefix}{name}": p for name, p in module.named_parameters()}


def buffers(module: nn.Module, prefix: str):
    return lambda: {f"{prefix}{name}": b for name, b in module.named_buffers()}


def of_parts(parts) -> dict:
    """A loss that the reference gives as a list."""
    parts = torch.stack(list(parts))
    return {"loss": parts.sum(), "loss_parts": parts}


def register(name: str):
    """Adapter of a method whose core is a function of the inputs alone."""

    def add(function):
        ADAPTERS.register(name)(lambda case: Subject(lambda: function(case)))
        return function

    return add


@register("attention")
def of_attention(case):
    return of_parts(attention.stage_loss(s, t, case.hyper["p"]) for s, t in pairs(case))


@register("similarity")
def of_similarity(case):
    return of_parts(similarity.stage_loss(s, t) for s, t in pairs(case))


@register("nst")
def of_nst(case):
    return of_parts(nst.stage_loss(s, t) for s, t in pairs(case))


@register("pkt")
def of_pkt(case):
    return {"loss": pkt.pkt_loss(case["f_s"], case["f_t"])}


@register("rkd")
def of_rkd(case):
    distance, angle = rkd.rkd_losses(case["f_s"], case["f_t"])
    return {"loss": case.hyper["w_d"] * distance + case.hyper["w_a"] * angle}


@ADAPTERS.register("correlation")
def of_correlation(case):
    if not case.hyper["with_embed"]:
        return Subject(lambda: {"loss": correlation.correlation_loss(case["f_s"], case["f_t"])})
    dim, trained, embed = case.hyper["feat_dim"], {}, {}
    for who in "st":
        embed[who] = nn.Linear(case[f"f_{who}"].shape[1], dim)
        trained |= load(embed[who], case, f"embed_{who}.")

    def call():
        z = {who: embed[who](case[f"f_{who}"]) for who in "st"}
        return {
            "loss": correlation.correlation_loss(z["s"], z["t"]),
            "out/embedded_s": z["s"],
            "out/embedded_t": z["t"],
        }

    return Subject(call, trained)


@ADAPTERS.register("vid")
def of_vid(case):
    likelihoods = nn.ModuleList(
        vid.Likelihood(s.shape[1], t.shape[1], case.hyper["init_pred_var"], case.hyper["eps"])
        for s, t in pairs(case)
    )
    trained = load(likelihoods, case, "vid.")
    return Subject(
        lambda: of_parts(f(s, t) for f, (s, t) in zip(likelihoods, pairs(case), strict=True)),
        trained,
    )


@ADAPTERS.register("convreg")
def of_regressor(case):
    h = case.hyper
    regressor = Regressor(h["s_shape"], h["t_shape"], h["use_relu"])
    trained = load(regressor, case, "")

    def call():
        y = regressor(case["f_s"])
        return {"loss": (y * case["probe"]).sum(), "out/y": y}

    return Subject(call, trained, buffers(regressor, ""))


@ADAPTERS.register("hint")
def of_hint(case):
    h = case.hyper
    if not h["with_convreg"]:
        return Subject(lambda: {"loss": nn.functional.mse_loss(case["f_s"], case["f_t"])})
    regressor = Regressor(h["s_shape"], h["t_shape"], h["use_relu"])
    trained = load(regressor, case, "regressor.")

    def call():
        regressed = regressor(case["f_s"])
        loss = nn.functional.mse_loss(regressed, case["f_t"])
        return {"loss": loss, "out/regressed": regressed}

    return Subject(call, trained, buffers(regressor, "regressor."))
