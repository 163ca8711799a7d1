"""Runs of odd sizes: of images, batches, data sets, classes; last batches of one image."""

from distiller_zoo import METHODS, VIEWS
from distiller_zoo.base import Distiller
from models import MODELS
from scripts.campaign.ground import Case

SLOW = {"ResNet50", "resnet110", "wrn_40_1", "wrn_40_2"}


def size(case: Case) -> None:
    """Any network and method on any size: a run of finite numbers, or one line."""
    chance = case.chance
    case.enter("empty")
    student, teacher = (chance.choice([m for m in MODELS if m not in SLOW]) for _ in range(2))
    classes = chance.choice([1, 2, 3, 4, 5, 7, 11])
    images = chance.randint(classes, 24)
    data = f"--dataset fake --fake_size {images} --fake_classes {classes} --device cpu"
    data += f" --image_size {chance.choice([8, 9, 12, 15, 16, 17, 24, 31, 32, 33, 40])}"
    small = f"{data} --batch_size {chance.choice([1, 2, 3, 5, 8, 23, images, 1000])}"
    kind = chance.choice(["teacher", "probe", "student", "student", "student"])
    case.run(f"train_teacher --model {teacher} {data} --batch_size 8 --epochs 1", (0, 2))
    found = list(case.folder.glob("save/models/*/*_last.pth"))
    if kind == "teacher" or not found:
        case.run(f"train_teacher --model {student} {small} --epochs 2 --trial 2", (0, 2))
    elif kind == "probe":
        case.run(
            ["transfer_student", "--path_s", str(found[0]), *f"{small} --epochs 2".split()], (0, 2)
        )
    else:
        method = chance.choice(list(METHODS))
        views = [f"--{view}" for view in VIEWS if view != "sdd" and chance.random() < 0.1]
        views += ["--sdd", "1,2"] if chance.random() < 0.1 else []
        line = f"--model_s {student} --distill {method} {small} --epochs 2"
        if METHODS[method].first_stage is not Distiller.first_stage:
            line += " --init_epochs 1"
        case.run(["train_student", *line.split(), *views, "--path_t", str(found[0])], (0, 2))
