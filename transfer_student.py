"""Train a new classifier on the frozen features of a checkpoint (linear probe).

python transfer_student.py --path_s save/student_model/RUN/resnet8x4_best.pth --dataset folder \\
    --data_dir PATH --trial 1
"""

from helper import assemble, cli
from helper.device import numerics, prepare
from helper.files import sha256
from helper.loop import fit, schedule
from helper.run import Run
from helper.tasks import LinearProbe, PooledOnce


def transfer_student(argv):
    """Command line -> the run's summary."""
    options = cli.parse_transfer(argv)
    where = numerics(options)
    data = assemble.load_data(options)
    name, path = assemble.probed(options)
    facts = {"objective": f"CE of a new classifier on {path}", **assemble.facts_of(data)}
    facts["source"] = {"model": name, "path": str(path), "sha256": sha256(path)}
    run = Run(assemble.probe_folder(options, data), name, options, facts)
    if assemble.already_done(run):
        return
    prepare(options.deterministic, run.seed)
    network = assemble.network(name, data)
    assemble.load_backbone(network, path, name)
    train, test = assemble.loaders(data, options, run.seed, where.device)
    rate = schedule(options, network.learning_rate)
    probe = LinearProbe(network, where)
    fit(probe, train, PooledOnce(probe, test), rate, options, run)


if __name__ == "__main__":
    cli.main(transfer_student)
