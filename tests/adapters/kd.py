from dataclasses import replace
from unittest import mock

import torch
from torch import nn

from dataset.base import Batch
from distiller_zoo.kd import KD
from distiller_zoo.views import LogitStandardization, ScaleDecoupling, Tekap
from models.base import Features

from . import ADAPTERS, Subject, bare_setup, only_logits

STANDARDIZE = LogitStandardization(LogitStandardization.Options(), bare_setup())


def kd_of(hyper, *views) -> KD:
    return KD(KD.Options(kd_T=hyper["temperature"]), bare_setup(*views))


@ADAPTERS.register("kd", "kd_ls")
def kd(case):
    views = [STANDARDIZE] if case.hyper.get("logit_stand") else []
    method = kd_of(case.hyper, *views)
    student, teacher = only_logits(case["logit_s"]), only_logits(case["logit_t"])
    batch = Batch(None, torch.zeros(len(case["logit_s"]), dtype=torch.long), None)
    return Subject(lambda: {"loss": method(student, teacher, batch)})


@ADAPTERS.register("tekap_logit")
def tekap_logit(case):
    h = case.hyper
    noise = torch.stack([case[f"noise_{i + 1}"] for i in range(h["num_augmented"])])[:, None]
    options = Tekap.Options(True, h["num_augmented"], h["noise_weight"], h["augmented_weight"])
    view = Tekap(options, bare_setup())
    method = kd_of(h, view)
    student, teacher = only_logits(case["logit_s"]), only_logits(case["logit_t"])
    batch = Batch(None, torch.zeros(len(case["logit_s"]), dtype=torch.long), None)

    def call():
        with mock.patch("torch.randn_like", return_value=noise):
            return {"loss": method(student, teacher, batch)}

    return Subject(call)


class Patches(Features):
    """A pass whose region logits are given: (B, K, R)."""

    def region_logits(self, scales, pooled_to=0):
        return self.logits.permute(2, 0, 1)


def patches(logits) -> Patches:
    a_map = logits.new_empty(1, 1, 4, 4)
    return Patches(None, (), (), a_map, None, logits, None)


def sdd(case, make_method) -> Subject:
    """Scale decoupling in front of the method that `make_method(hyper, *views)` gives."""
    scales = tuple(case.hyper.get("scales", (1,)))
    trained = {}
    if "patch_s" in case.entry["inputs"]:
        student, teacher = patches(case["patch_s"]), patches(case["patch_t"])
    else:
        student = from_map(case, "s")
        teacher = from_map(case, "t")
        trained = {f"classifier_s.{k}": p for k, p in student.head.named_parameters()}
    setup = replace(bare_setup(), student=student, teacher=teacher)
    views = [ScaleDecoupling(ScaleDecoupling.Options(scales), setup)]
    views += [STANDARDIZE] if case.hyper["logit_stand"] else []
    method = make_method(case.hyper, *views)
    batch = Batch(None, case["target"], None)

    def call():
        regions = {w: f.region_logits(scales) for w, f in (("s", student), ("t", teacher))}
        weights = ScaleDecoupling.weights(regions["t"], case["target"])
        return {
            "loss": method(student, teacher, batch),
            "out/weights": weights.T,
            **{f"out/patch_{w}": r.permute(1, 2, 0) for w, r in regions.items()},
            **{f"out/logit_{w}": f.logits for w, f in (("s", student), ("t", teacher))},
        }

    return Subject(call, trained)


def from_map(case, who: str) -> Features:
    """A network that ends in the given map and classifier."""
    last_map = case[f"f_{who}"]
    weight, bias = case.state(f"classifier_{who}.weight"), case.state(f"classifier_{who}.bias")
    head = nn.Linear(weight.shape[1], weight.shape[0]).to(weight.dtype)
    head.load_state_dict({"weight": weight, "bias": bias})
    pooled = last_map.mean(dim=(2, 3))
    return Features(None, (last_map,), (last_map,), last_map, pooled, head(pooled), head)


@ADAPTERS.register("sdd_kd")
def sdd_kd(case):
    return sdd(case, kd_of)
