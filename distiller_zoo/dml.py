from . import METHODS
from .base import Distiller, Recipe
from .rows import kl


@METHODS.register("dml")
class DML(Distiller):
    """Zhang et al., Deep Mutual Learning, CVPR 2018 (eq. 5 to 8): two students teach each other.

    There is no teacher, but a second student, `--peer`, that starts elsewhere and sees the same
    batches. The loss of each is cross-entropy and KL(other || own) at temperature 1, mean over the
    batch, in which the other's probabilities are constants.

    Both answer the same batch and take one step at once. In the paper's algorithm 1 they do so in
    turn: the second one answers what the first one says after its step.
    """

    recipe = Recipe(gamma=1.0, alpha=0.0, beta=1.0)
    reads = frozenset({"logits"})
    has_teacher = False
    mutual = True

    def __init__(self, options, setup):
        super().__init__(options, setup)
        if setup.student.logits.shape[1] < 2:
            raise ValueError("of one class two students have nothing to tell each other")

    def forward(self, student, other, batch):
        return kl(student.logits, other.logits.detach(), temperature=1.0).mean()
