"""Train a network by itself: a teacher, or a student to compare with.

python train_teacher.py --model resnet32x4 --dataset cifar100 --trial 1
"""

from helper import assemble, cli
from helper.device import numerics, prepare
from helper.loop import fit, schedule
from helper.run import Run
from helper.tasks import Supervised


def train_teacher(argv):
    """Command line -> the run's summary."""
    options = cli.parse_teacher(argv)
    where = numerics(options)
    data = assemble.load_data(options)
    folder = assemble.teacher_folder(options, data)
    run = Run(folder, options.model, options, {"objective": "CE", **assemble.facts_of(data)})
    if assemble.already_done(run):
        return
    prepare(options.deterministic, run.seed)
    network = assemble.network(options.model, data)
    train, test = assemble.loaders(data, options, run.seed, where.device)
    rate = schedule(options, network.learning_rate)
    fit(Supervised(network, where), train, test, rate, options, run)


if __name__ == "__main__":
    cli.main(train_teacher)
