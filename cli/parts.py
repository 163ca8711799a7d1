"""The parts of a student's training: networks, losses, batches."""

from typing import NamedTuple

from cli.bank import make_teacher, terms_read
from cli.networks import Trained
from cli.objective import kd_and_method, method_setup
from cli.setting import Loaders, Setting
from distiller_zoo.base import Distiller
from engine.device import prepare
from engine.teacher import NoTeacher, Teacher
from models.base import Classifier


class Parts(NamedTuple):
    """What a student is trained with."""

    student: Classifier
    peer: Classifier | None  # a second student, of a method that trains two
    teacher: Teacher
    kd: Distiller
    method: Distiller
    loaders: Loaders
    bank: str  # a line on the teacher's bank; empty where none is asked for
    start: str  # a line on what the student starts from; empty where that is random


def make_parts(setting: Setting, trained: Trained | None) -> Parts:
    """The parts that the options of train_student.py describe, with a trained teacher or none."""
    options = setting.options
    prepare(options.deterministic, setting.seed)  # so that the student starts as it would alone
    student, start = setting.trained_network()
    peer = setting.network(options.peer) if options.peer else None
    loaders = setting.loaders(strong=options.choice.views_per_image(options) > 1)
    network = trained and trained.network
    setup = method_setup(student, network, setting.data.image_size, loaders.train)
    kd, method = kd_and_method(options, setup)
    if trained:
        terms = terms_read(options, kd, method, student)
        teacher, bank = make_teacher(trained, setup.teacher, terms, setting, loaders.train)
    else:
        teacher, bank = NoTeacher(setting.numerics), ""
    return Parts(student, peer, teacher, kd, method, loaders, bank, start)
