import torch

from distiller_zoo.factor import Paraphraser, Translator, factor_loss

from . import ADAPTERS, Subject
from .features import buffers, load


@ADAPTERS.register("factor")
def factor(case):
    return {"loss": of_loss, "paraphraser": of_paraphraser, "translator": of_translator}.get(
        case.hyper["stage"], of_all
    )(case)


def of_loss(case):
    h = case.hyper
    return Subject(
        lambda: {"loss": factor_loss(case["factor_s"], case["factor_t"], h["p1"], h["p2"])}
    )


def paraphraser_of(case):
    channels = case["f_t"].shape[1]
    paraphraser = Paraphraser(channels, int(channels * case.hyper["k"]))
    return paraphraser, load(paraphraser, case, "paraphraser.")


def translator_of(case, channels: int):
    translator = Translator(case["f_s"].shape[1], int(channels * case.hyper["k"]))
    return translator, load(translator, case, "translator.")


def of_paraphraser(case):
    paraphraser, trained = paraphraser_of(case)

    def call():
        made = paraphraser.encoder(case["f_t"])
        return {
            "loss": paraphraser.reconstruction_loss(case["f_t"]),
            "out/factor": made,
            "out/reconstruction": paraphraser.decoder(made),
        }

    return Subject(call, trained)


def of_translator(case):
    translator, trained = translator_of(case, case.hyper["t_shape"][1])

    def call():
        made = translator(case["f_s"])
        return {"loss": (made * case["probe"]).sum(), "out/factor": made}

    return Subject(call, trained, buffers(translator, "translator."))


def of_all(case):
    """As the method puts them together; its parts are called by hand to be looked at."""
    paraphraser, _ = paraphraser_of(case)
    translator, trained = translator_of(case, case["f_t"].shape[1])
    h = case.hyper

    def call():
        with torch.no_grad():
            factor_t = paraphraser.encoder(case["f_t"])
        factor_s = translator(case["f_s"])
        loss = factor_loss(factor_s, factor_t, h["p1"], h["p2"])
        return {"loss": loss, "out/factor_s": factor_s, "out/factor_t": factor_t}

    return Subject(call, trained, buffers(translator, "translator."))
