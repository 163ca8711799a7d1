"""Train a new classifier on the frozen features of a checkpoint (linear probe).

python transfer_student.py --path_s save/student_model/RUN/resnet8x4_best.pth --dataset folder \\
    --data_dir PATH --trial 1
"""

from cli.identity import make_experiment, probe_title
from cli.main import main
from cli.networks import load_backbone, probed_network
from cli.parse import parse_transfer
from cli.setting import Loaders, make_setting
from cli.training import is_finished, print_heading, run_folder, train
from engine.device import prepare
from engine.objective import LinearProbe, PooledOnce
from engine.stage import main_stage
from runs import checkpoint


def transfer_student(argv):
    """Command line -> a run in save/linear_probe/."""
    options = parse_transfer(argv)
    name, path = probed_network(options)
    setting = make_setting(options, name)
    digest = checkpoint.digest(path)
    experiment = make_experiment("probe", setting, probe_title(setting, path, digest), digest)
    folder = run_folder(setting, experiment)
    if is_finished(folder, setting):
        return
    prepare(options.deterministic, setting.seed)
    network = setting.network(name)
    load_backbone(network, path, name)
    probe = LinearProbe(network, setting.numerics)
    train_loader, *others = setting.loaders()
    loaders = Loaders(train_loader, *(other and PooledOnce(probe, other) for other in others))
    facts = {
        "objective": f"CE on the features of {path.name} ({digest[:8]})",
        "terms": {"ce": 1.0},
        "source": {"model": name, "path": str(path), "sha256": digest},
    }
    stage = main_stage(probe, setting.schedule, options)
    print_heading(setting, folder, network, facts["objective"])
    train(setting, folder, [stage], loaders, facts)


if __name__ == "__main__":
    main(transfer_student)
