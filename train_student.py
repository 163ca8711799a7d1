"""Train a student with the help of a teacher.

python train_student.py --path_t save/models/resnet32x4_vanilla/ckpt_epoch_240.pth \\
    --distill kd --model_s resnet8x4 -r 0.1 -a 0.9 -b 0 --trial 1
"""

from cli.identity import make_experiment, student_title
from cli.main import main
from cli.networks import load_teacher
from cli.objective import describe_memories, describe_objective, describe_pair
from cli.parse import parse_student
from cli.parts import make_parts
from cli.setting import make_setting
from cli.training import (
    describe_peer,
    is_finished,
    measure_teacher,
    print_heading,
    run_folder,
    train,
)
from engine.objective import Distillation, Mutual, term_weights, warm_up
from engine.stage import first_stage, main_stage


def train_student(argv):
    """Command line -> a run in save/student_model/."""
    options = parse_student(argv)
    setting = make_setting(options, options.model_s)
    teacher = load_teacher(setting)
    tag = "" if not teacher or teacher.usual else f"-{teacher.sha256[:8]}"
    source = teacher.sha256 if teacher else ""
    experiment = make_experiment("student", setting, student_title(setting, tag), source)
    folder = run_folder(setting, experiment)
    if is_finished(folder, setting):
        return
    parts = make_parts(setting, teacher)
    losses = parts.teacher, parts.kd, parts.method, options.distill, options
    if parts.peer:
        task = Mutual((parts.student, parts.peer), setting.peer_rate, *losses)
    else:
        task = Distillation(parts.student, *losses)
    stages = [
        first_stage(task, setting.schedule.start, options, options.init_epochs),
        main_stage(task, setting.schedule, options, options.dot),
    ]
    objective = describe_objective(options)
    memories = describe_memories(task, options.save_freq)
    peer = describe_peer(parts.peer, setting)
    notes = [parts.start, peer, describe_pair(options), memories, parts.bank]
    print_heading(setting, folder, task.student, objective, notes)
    facts = {
        "objective": objective,
        "terms": term_weights(options, options.distill, warm_up(options, options.epochs)),
        **measure_teacher(teacher, setting, parts, folder),
    }
    train(setting, folder, stages, parts.loaders, facts)


if __name__ == "__main__":
    main(train_student)
