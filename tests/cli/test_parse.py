import warnings

import pytest
import torch

from cli import objective, parse
from engine.objective import Task
from engine.recipe import make_schedule as schedule
from helper.errors import UserError
from models.any import learning_rate


def student(line):
    return parse.parse_student(line.split())


def weights(options):
    return options.gamma, options.alpha, options.beta


def test_weights_are_the_methods_unless_typed():
    assert weights(student("--distill kd")) == (0.1, 0.9, 0)
    options = student("--distill kd -r 1 -a 0.5")
    assert weights(options) == (1, 0.5, 0)
    assert options.origin["alpha"] == "typed"
    assert options.origin["beta"] == "recipe of kd"


def test_both_spellings_and_the_short_ones():
    assert student("--logit-stand --kd-T 3").kd_T == 3
    assert student("--logit_stand on --lr-decay-epochs 3,5").lr_decay_epochs == (3, 5)
    assert student("--M [1,2,4]").sdd == student("--sdd 1,2,4").sdd == (1, 2, 4)
    assert student("--learning_rate=0.2").learning_rate == 0.2


def test_standardization_brings_its_own_temperature_and_weight():
    options = student("--distill kd --logit_stand")
    assert (options.kd_T, *weights(options)) == (2, 0.1, 9, 0)
    assert student("--logit_stand --base_temp 3 --kd_weight 5").alpha == 5
    assert student("--logit_stand --base_temp 3").kd_T == 3
    assert student("--logit_stand -a 4").alpha == 4  # what is typed wins
    assert student("--logit_stand off").alpha == 0.9


def test_standardization_beside_the_method_that_reads_logits_or_features():
    options = student("--distill mlkd --logit_stand")
    assert (options.kd_T, options.beta) == (2, 9)
    options = student("--distill nkd --logit_stand --base_temp 3")
    assert (options.nkd_T, options.kd_T, options.beta) == (3, 3, 9)
    options = student("--distill crd --logit_stand")  # what it changes is KD
    assert (options.kd_T, *weights(options)) == (2, 1, 9, 0.8)
    assert weights(student("--distill crd -a 1 --logit_stand")) == (1, 1, 0.8)


def test_the_objective_in_words():
    assert objective.describe_objective(student("--distill kd")) == "0.1*CE + 0.9*KD(T=4)"
    text = objective.describe_objective(student("--sdd 1,2 --logit_stand -a 2 -r 0"))
    assert text == "2*KD(T=2) on rows: sdd=(1, 2), logit_stand"


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("--distill kd --divergence ab", "1*CE + 32*KD(T=4, AB(0.5, 0.5))"),
        ("--distill dkd --divergence ab --ab_alpha 1 --warmup 0 -b 2", "1*CE + 2*dkd(AB(1, 0.5))"),
        ("--distill ttm --divergence ab", "1*CE + 45*ttm(AB(0.5, 0.5))"),
        ("--distill crd --crd_memory queue", "1*CE + 0.8*crd(queue)"),
        ("--distill crd", "1*CE + 0.8*crd"),
    ],
)
def test_the_objective_names_what_options_make_of_a_method(line, text):
    assert objective.describe_objective(student(line)) == text


def test_decays_move_with_the_number_of_epochs():
    def rates(line):
        options = student(line)
        return schedule(options, 0.05)

    assert rates("").decay_epochs == (150, 180, 210)
    assert rates("--epochs 60").decay_epochs == (38, 45, 53)
    assert rates("--epochs 160 --lr_decay_epochs 150,180").decay_epochs == (150,)
    rate = rates("--lr_decay_epochs 2,4")
    assert [rate(epoch) for epoch in (1, 2, 3, 5)] == pytest.approx([0.05, 0.05, 0.005, 0.0005])
    assert rates("--learning_rate 0.3")(1) == 0.3


def test_decays_that_fall_on_one_epoch_are_said(run, capsys):
    line = "train_teacher --model resnet8 --dataset fake --fake_size 20 --image_size 8 --device cpu"
    run(f"{line} --epochs 3")
    said = "3 epochs are too few for the recipe's decays: several fall on epoch 2, and the rate"
    assert said in capsys.readouterr().err
    run(f"{line} --epochs 1")
    run(f"{line} --epochs 3 --lr_decay_epochs 2,2 --trial 2")
    assert "decays" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "other"),
    [
        ("--val_seed 3", "val_fraction"),
        ("--bank_type float16", "teacher_bank"),
        ("--bank_batch 8", "teacher_bank"),
        ("--bank_limit 8", "teacher_bank"),
    ],
)
def test_what_another_option_gives_its_meaning_is_refused_without_it(flags, other):
    name = flags.split()[0]
    with pytest.raises(UserError, match=f"{name} has no meaning without --{other}: leave it out"):
        student(flags)
    student(f"{flags} --{other} 0.1")


def test_a_cosine_falls_to_0_behind_the_last_epoch():
    rate = schedule(student("--schedule cosine --epochs 4 --lr 0.2"), 0.05)
    assert [rate(epoch) for epoch in (1, 3)] == pytest.approx([0.2, 0.1])
    assert rate(4) == pytest.approx(0.1 * (1 - 0.5**0.5))
    assert rate(5) == pytest.approx(0)


def test_adamw_has_a_rate_and_a_decay_of_its_own():
    options = student("--optimizer adamw --dataset imagenet")
    assert (options.learning_rate, options.weight_decay) == (1e-3, 0.05)
    assert options.origin["weight_decay"] == "recipe of adamw"
    assert student("--optimizer adamw --wd 0.01 --lr 0.1").weight_decay == 0.01
    assert parse.parse_teacher(["--optimizer", "adamw"]).learning_rate == 1e-3


PROBE_RATES = {
    "resnet8x4": 0.05, "vgg8": 0.05, "wrn_16_2": 0.05, "torchvision:resnet18": 0.05,
    "MobileNetV2": 0.01, "ShuffleV1": 0.01, "ShuffleV2": 0.01,
}  # fmt: skip


def test_the_probe_has_a_recipe_of_its_own():
    options = parse.parse_transfer(["--path_s", "x.pth"])
    assert (options.epochs, options.lr_decay_epochs) == (120, (30, 60, 90))
    for network, rate in PROBE_RATES.items():
        assert schedule(options, learning_rate(network)).start == rate
        typed = parse.parse_transfer(["--path_s", "x.pth", "--learning_rate", "0.2"])
        assert schedule(typed, learning_rate(network)).start == 0.2
    assert parse.parse_transfer(["--epochs", "12"]).lr_decay_epochs == (3, 6, 9)
    assert parse.parse_transfer(["--epochs", "1"]).lr_decay_epochs == (1, 1, 1)  # after the run


def test_a_warm_up_that_is_longer_than_the_run_is_said():
    with pytest.warns(UserWarning, match="weight of dkd grows over 20 epochs and the run has 8"):
        student("--distill dkd --epochs 8")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        student("--distill dkd --epochs 8 --warmup 1")
        student("--distill kd --epochs 8")


def test_options_cannot_be_changed():
    options = student("")
    with pytest.raises(TypeError):
        options.values["alpha"] = 1
    with pytest.raises(AttributeError):
        options.alpha = 1


def test_help_shows_the_flags_of_what_was_chosen(capsys):
    with pytest.raises(SystemExit) as stop:
        student("--distill kd --dataset fake --help")
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    assert "--fake_size" in shown
    assert "--kd_T" in shown
    assert "--cache_dir" not in shown  # a flag of another data set


def test_a_view_cannot_be_set_in_two_ways_at_once():
    with pytest.raises(UserError, match="--base_temp 3 and --kd_T 4 set the same thing"):
        student("--logit_stand --base_temp 3 --kd_T 4")


def test_settings_of_a_pair():
    pair = "--distill kd --model_t vgg13 --model_s vgg8 --logit_stand"
    options = student(pair)
    assert (options.base_temp, options.kd_T, options.alpha) == (3, 3, 9)
    assert "vgg13 -> vgg8: base_temp=3.0, kd_weight=9.0" in objective.describe_pair(options)
    assert student(f"{pair} --base_temp 2").kd_T == 2  # what is typed wins
    options = student(f"{pair} --no_pair_defaults")
    assert (options.kd_T, objective.describe_pair(options)) == (2, "")
    assert objective.describe_pair(student("--distill kd --model_t vgg13 --model_s vgg8")) == ""


def test_settings_of_an_option_are_not_those_of_a_pair():
    options = student("--distill kd --divergence ab --no_pair_defaults")
    assert weights(options) == (1, 32, 0)
    assert options.origin["alpha"] == "--divergence"
    assert not options.no_pair_defaults, "there was nothing to leave out"
    pair = "--distill kd --divergence ab --model_t resnet56 --model_s resnet20"
    text = objective.describe_pair(student(pair))
    assert text.startswith("settings of resnet56 -> resnet20: ab_alpha=0.8, ab_beta=0.3 (")
    options = student(f"{pair} --no_pair_defaults")
    assert (options.ab_alpha, options.alpha, options.no_pair_defaults) == (0.5, 32, True)


def test_the_teacher_is_named_by_its_checkpoint(tmp_path):
    path = tmp_path / "wrn_40_2_vanilla" / "ckpt_epoch_240.pth"
    path.parent.mkdir()
    torch.save({"model": {}}, path)
    assert student(f"--path_t {path}").model_t == "wrn_40_2"
    assert student(f"--path_t {path} --model_t vgg8").model_t == "vgg8"
    assert student("").model_t == "resnet32x4"


def test_large_memories_are_said():
    """And how often they are written, where that is not every epoch."""

    class WithBank(Task):
        def __init__(self, samples):
            torch.nn.Module.__init__(self)
            self.method = torch.nn.Module()
            self.method.register_buffer("bank", torch.empty(samples, 128, device="meta"))

    assert objective.describe_memories(WithBank(1_280_000), 40) == (
        "memories:  655 MB of Module; they and resume.pth are written every 40 epochs (--save_freq)"
    )
    assert objective.describe_memories(WithBank(100_000), 40) == "memories:  51 MB of Module"
    assert objective.describe_memories(WithBank(1000), 40) == ""
