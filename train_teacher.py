"""Train a network by itself: a teacher, or a student to compare with.

python train_teacher.py --model resnet32x4 --dataset cifar100 --trial 1
"""

from cli.identity import make_experiment, teacher_title
from cli.main import main
from cli.parse import parse_teacher
from cli.setting import make_setting
from cli.training import is_finished, print_heading, run_folder, train
from engine.device import prepare
from engine.objective import Supervised
from engine.stage import main_stage


def train_teacher(argv):
    """Command line -> a run in save/models/."""
    options = parse_teacher(argv)
    setting = make_setting(options, options.model)
    experiment = make_experiment("teacher", setting, teacher_title(setting))
    folder = run_folder(setting, experiment)
    if is_finished(folder, setting):
        return
    prepare(options.deterministic, setting.seed)
    network, start = setting.trained_network()
    task = Supervised(network, setting.numerics)
    stage = main_stage(task, setting.schedule, options)
    facts = {"objective": "CE", "terms": {"ce": 1.0}}
    print_heading(setting, folder, task.student, facts["objective"], [start])
    train(setting, folder, [stage], setting.loaders(), facts)


if __name__ == "__main__":
    main(train_teacher)
