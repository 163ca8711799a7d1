from dataclasses import replace

import torch

from dataset.base import Batch
from distiller_zoo import wkd_feature, wkd_logit
from distiller_zoo.wkd_feature import WKDFeature
from distiller_zoo.wkd_logit import WKDLogit

from . import ADAPTERS, Subject, bare_setup, only_logits
from .features import buffers, load, method_of, passes


def method_on_logits(case) -> WKDLogit:
    h = case.hyper
    options = WKDLogit.Options(
        wkd_T=h.get("temperature", 1.0),
        wkd_transport=h.get("gamma", 0.0 if h["piece"] == "target" else 1.0),
        wkd_reg=h.get("reg", 1.0),
        wkd_rounds=h.get("iterations", 1),
        wkd_cost="logits",
        wkd_sharpen=h.get("sharpen", 0.0),
    )
    shown = only_logits(case["logit_s"])
    method = WKDLogit(options, replace(bare_setup(), student=shown, teacher=shown)).to(case.dtype)
    if "cost_matrix" in case.entry["inputs"]:
        method.cost.copy_(wkd_logit.sharpened(case["cost_matrix"], options.wkd_sharpen))
    return method


@ADAPTERS.register("wkd_logit")
def of_logits(case):
    """The published target part is no option of its own: it is what is left without transport."""
    method, h = method_on_logits(case), case.hyper
    features = only_logits(case["logit_s"]), only_logits(case["logit_t"])
    batch = Batch(None, case["target"], None)

    def call():
        loss = method(*features, batch)
        if h["piece"] != "transport":
            return {"loss": loss}
        method.share.zero_()
        target = method(*features, batch)
        method.share.fill_(1)
        return {"loss": loss - target, "out/flow": flow(method, case)}

    return Subject(call)


def flow(method, case):
    """The plans (B, K - 1, K - 1), without the target."""
    o, labels = method.options, case["target"]
    p, q = (
        wkd_logit.mask_class(case[name] / o.wkd_T, labels).softmax(dim=1)
        for name in ("logit_s", "logit_t")
    )
    kernel = (-(method.cost.clamp_min(0) + wkd_logit.EPS) / o.wkd_reg).exp()
    u, v = wkd_logit.sinkhorn(p, q, kernel, labels, o.wkd_rounds)
    plans = u[:, :, None] * kernel * v[:, None]
    others = [[k for k in range(len(kernel)) if k != label] for label in labels.tolist()]
    return torch.stack([plan[rest][:, rest] for plan, rest in zip(plans, others, strict=True)])


@ADAPTERS.register("wkd_cost")
def of_cost(case):
    h = case.hyper
    if h["kind"] == "fc":
        distances = wkd_logit.classifier_distances(case["weight"])
    else:
        x, labels = case["features"], case["labels"]
        rows = x.flatten(2).mT if h["kind"] == "cka_map" else x[:, None]
        halves = zip(rows.split(5), labels.split(5), strict=True)
        distances = 1 - wkd_logit.cka(wkd_logit.rows_by_class(halves, h["num_classes"]))
    cost = wkd_logit.sharpened(distances, h["sharpen"])
    return Subject(lambda: {"loss": (cost * case["probe"]).sum(), "out/cost": cost})


@ADAPTERS.register("wkd_feature")
def of_features(case):
    h = case.hyper
    if not h["with_projector"]:
        return Subject(lambda: parts(case["f_s"], case["f_t"], h))
    options = WKDFeature.Options(wkd_mean=h["mean_weight"], wkd_grid=h["grid"])
    method = method_of(WKDFeature, options, case)
    trained = load(method.projector, case, "projector.")

    def call():
        loss = method(*passes(case), None)
        mean, deviation = method.parts["mean"], method.parts["deviation"]
        return {"loss": loss, "out/mean_part": mean, "out/std_part": deviation}

    return Subject(call, trained, buffers(method.projector, "projector."))


def parts(student, teacher, h):
    mean, deviation = wkd_feature.moment_losses(student, teacher, h["grid"])
    loss = h["mean_weight"] * mean + deviation
    return {"loss": loss, "out/mean_part": mean, "out/std_part": deviation}
