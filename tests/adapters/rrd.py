from dataclasses import replace

from distiller_zoo.rrd import RRD

from . import ADAPTERS, Subject
from .crd import batch_of, fill_embeddings, fill_memories, only_pooled, setup_of


def rrd_of(case):
    """The method of a case, its batch, its trained parameters and its state."""
    h = case.hyper
    momentum = h["variant"] == "momentum"
    options = RRD.Options(
        rrd_memory="momentum" if momentum else "queue",
        enqueue="after" if h["variant"] == "enqueue_after_loss" else "before",
        feat_dim=h["feat_dim"],
        nce_k=h["nce_k"],
        nce_t_s=h["nce_t_s"],
        nce_t_t=h["nce_t_t"],
    )
    if momentum:
        options = replace(options, nce_t=h["nce_t"], nce_m=h["nce_m"])
    method = RRD(options, setup_of(case))
    trained = fill_embeddings(case, method)
    if momentum:
        state, batch = fill_memories(case, method), batch_of(case)
        method.candidates = lambda batch: case["contrast_idx"]
    else:
        state, batch = fill_queue(case, method.queue), None
    return method, batch, trained, state


@ADAPTERS.register("rrd")
def rrd(case):
    method, batch, trained, state = rrd_of(case)
    features = only_pooled(case["f_s"]), only_pooled(case["f_t"])
    return Subject(lambda: {"loss": method(*features, batch)}, trained, state)


def fill_queue(case, queue):
    """Give the queue the state of the case -> a function that reads it."""
    queue.to(case.dtype)
    queue.bank.copy_(case.state("queue"))
    queue.next.copy_(case.state("queue_ptr"))
    return lambda: {"queue": queue.bank, "queue_ptr": queue.next}
