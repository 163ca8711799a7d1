from copy import deepcopy

from distiller_zoo.factor import FactorTransfer, Paraphraser, Translator, factor_loss

from . import ADAPTERS, Subject
from .features import buffers, load, method_of, passes


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
    """The method's loss; its parts are called once more to be looked at."""
    h = case.hyper
    options = FactorTransfer.Options(ft_k=h["k"], ft_p1=h["p1"], ft_p2=h["p2"])
    method = method_of(FactorTransfer, options, case)
    load(method.paraphraser, case, "paraphraser.")
    trained = load(method.translator, case, "translator.")

    def call():
        translator = deepcopy(method.translator)  # whose pass moves no statistics of the method
        factors = {
            "out/factor_s": translator(case["f_s"]),
            "out/factor_t": method.paraphraser.encoder(case["f_t"]).detach(),
        }
        return {"loss": method(*passes(case), None), **factors}

    return Subject(call, trained, buffers(method.translator, "translator."))
