"""Train a student with the help of a teacher.

python train_student.py --path_t save/models/resnet32x4_vanilla/ckpt_epoch_240.pth \\
    --distill kd --model_s resnet8x4 -r 0.1 -a 0.9 -b 0 --trial 1
"""

from helper import assemble, cli
from helper.device import numerics, prepare
from helper.loop import fit, fit_first_stage, schedule
from helper.run import Run
from helper.tasks import Distillation


def train_student(argv):
    """Command line -> the run's summary."""
    options = cli.parse_student(argv)
    where = numerics(options)
    data = assemble.load_data(options)
    path_t = assemble.teacher_path(options)
    teacher = assemble.load_frozen(options.model_t, path_t, data)
    folder = assemble.student_folder(options, data)
    facts = {"objective": cli.describe(options), **assemble.facts_of(data)}
    run = Run(folder, options.model_s, options, facts)
    if assemble.already_done(run):
        return
    prepare(options.deterministic, run.seed)  # so that the student starts as it would alone
    student = assemble.network(options.model_s, data)
    train, test = assemble.loaders(data, options, run.seed, where.device)
    setup = assemble.method_setup(student, teacher, data.image_size, train)
    kd, method = assemble.kd_and_method(options, setup)

    run.facts["teacher"] = assemble.check_teacher(options.model_t, path_t, teacher, test, where)
    print(f"objective: {facts['objective']}")
    if note := cli.pair_note(options):
        print(note)
    task = Distillation(student, teacher, kd, method, options, where)
    rate = schedule(options, student.learning_rate)
    fit_first_stage(task, train, rate.start, options, options.init_epochs, run)
    fit(task, train, test, rate, options, run)


if __name__ == "__main__":
    cli.main(train_student)
