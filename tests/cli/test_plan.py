"""Plans: the command lines of a whole table, resolved before any of them runs."""

import functools
import shlex
from dataclasses import replace
from pathlib import Path

import pytest

from cli import job
from cli.plan import read_plan
from distiller_zoo import METHODS
from helper.errors import UserError
from tests.cli.test_configs import ACROSS, WITHIN

ROOT = Path(__file__).resolve().parent.parent.parent
PLANS = sorted((ROOT / "plans").glob("*.yaml"))
PLAN = """\
dataset: fake
pairs: [resnet14 resnet8]
methods: {KD: kd, CRD+KD: crd -a 1 --nce_k 8}
flags: --fake_size 48 --fake_classes 4 --image_size 8 --batch_size 16 --epochs 1
"""


@functools.cache
def plan_of(name):
    return read_plan(str(ROOT / "plans" / f"{name}.yaml"))


@pytest.fixture
def jobs_of(tmp_path):
    """The jobs of a plan's text."""

    def jobs_of(text, more=""):
        path = tmp_path / "a.yaml"
        path.write_text(text)
        return read_plan(str(path), more)

    return jobs_of


@pytest.mark.parametrize("path", PLANS, ids=lambda path: path.stem)
def test_every_shipped_plan_resolves(path):
    jobs = plan_of(path.stem)
    before = set()
    for one in jobs:
        assert before.issuperset(one.needs)
        before.add(one)
        python, script, *argv = shlex.split(one.command())
        assert (python, (ROOT / script).is_file()) == ("python", True)
        assert (script, tuple(argv)) == (one.script, one.argv)
    assert len({one.place for one in jobs}) == len(jobs)
    assert {one.kind for one in jobs} >= {"teacher", "student"}


def test_there_are_plans():
    wanted = {"digits", "cifar100_same", "cifar100_different", "imagenet", "transfer"}
    assert {path.stem for path in PLANS} >= wanted | {"decoupled", "tekap", "contrastive"}


def test_the_plans_of_cifar100_have_every_method():
    jobs = [one for kind in ("same", "different") for one in plan_of(f"cifar100_{kind}")]
    used = {dict(one.experiment.options)["distill"] for one in jobs if one.kind == "student"}
    assert used == {METHODS.canonical(name) for name in METHODS}


def test_the_plan_of_minutes_has_every_method_once():
    students = [one for one in plan_of("methods_digits") if one.kind == "student"]
    used = [dict(one.experiment.options)["distill"] for one in students]
    assert sorted(used) == sorted({METHODS.canonical(name) for name in METHODS})


def test_the_decoupled_plan_has_the_settings_of_the_configs():
    found = {}
    for one in plan_of("decoupled"):
        options = dict(one.experiment.options)
        if one.kind == "student" and one.experiment.trial == 1:
            method = f"{'sdd_' if 'sdd' in options else ''}{options['distill']}"
            pair = options["model_t"], options["model_s"]
            found[method, pair, "logit_stand" in options] = one.experiment
    assert {pair for _, pair, _ in found} == {*WITHIN, *ACROSS}
    for (method, (teacher, student), standardized), experiment in found.items():
        path = ROOT / "configs" / "cifar100" / method / f"{teacher}_{student}.yaml"
        more = ["--logit_stand"] * standardized
        assert job.make_job("", "student", {"cfg": str(path)}, more).experiment == experiment


def test_published_teachers_need_no_path(jobs_of):
    jobs = jobs_of(
        "dataset: cifar100\npairs: [vgg13 vgg8, wrn_40_2 wrn_16_2]\nmethods: {KD: kd, LS: kd "
        "--logit_stand}\ntrials: 2\nflags: --amp bf16",
        "--save_dir 'a b'",
    )
    assert [one.command() for one in jobs if "vgg8" in one.argv and one.experiment.trial == 2] == [
        "python train_teacher.py --model vgg8 --dataset cifar100 --trial 2 --amp bf16 "
        "--save_dir 'a b'",
        "python train_student.py --distill kd --model_t vgg13 --model_s vgg8 --dataset cifar100 "
        "--trial 2 --amp bf16 --save_dir 'a b'",
        "python train_student.py --distill kd --model_t vgg13 --model_s vgg8 --dataset cifar100 "
        "--trial 2 --amp bf16 --save_dir 'a b' --logit_stand",
    ]
    assert len(jobs) == 2 * (2 + 4)
    assert {one.stage for one in jobs} == {0}
    assert jobs[-1].place == (
        "student_model/S_wrn_16_2_T_wrn_40_2_cifar100_kd_logit_stand_r_0.1_a_9_b_0_trial_2"
    )


def test_a_given_teacher_and_one_that_is_trained_first(jobs_of, tmp_path):
    text = "dataset: cifar100\npairs: [vgg13 vgg8]\nmethods: {KD: kd}\n"
    given = tmp_path / "t.pth"
    with pytest.raises(UserError, match=r"a.yaml: teachers: vgg13: there is no checkpoint .*t.pth"):
        jobs_of(f"{text}teachers: {{vgg13: {given}}}")
    given.write_bytes(b"")
    alone, student = jobs_of(f"{text}teachers: {{vgg13: {given}}}")
    assert f"--path_t {given}" in student.command()
    assert "S_vgg8_T_vgg13-????????_cifar100" in student.place
    assert (alone.needs, student.needs) == ((), ())
    teacher, alone, student = jobs_of(
        f"{text}teachers: {{vgg13: train}}\nteacher_flags: --epochs 2\nstudent_flags: --epochs 1"
    )
    assert teacher.place == "models/vgg13_cifar100_epochs_2_trial_1"
    assert f"--path_t ./save/{teacher.place}/vgg13_last.pth" in student.command()
    assert student.needs == (teacher,)
    assert "epochs_1_" in alone.place


def test_a_method_that_speaks_of_the_bank_has_that_of_the_sweep(jobs_of):
    text = (
        "dataset: cifar100\npairs: [vgg13 vgg8]\nmethods: {KD: kd --bank_type float16, DKD: dkd}\n"
        "flags: --save_dir here"
    )
    _, kd, dkd = jobs_of(text)
    assert kd.argv[-2:] == ("--teacher_bank", "here/bank")
    assert "--teacher_bank" not in dkd.argv
    _, kd, _ = jobs_of(text.replace("float16", "float16 --teacher_bank own"))
    assert [word for word in kd.argv if "bank" in word] == ["--bank_type", "--teacher_bank"]
    with pytest.raises(UserError, match="KD, vgg13 vgg8: --bank_type has no meaning"):
        jobs_of(text.replace("kd --", "pskd --"))


def test_a_network_that_is_teacher_and_student_is_trained_once(jobs_of):
    pairs = "pairs: [resnet14 resnet8, resnet20 resnet14]"
    jobs = jobs_of(PLAN.replace("pairs: [resnet14 resnet8]", pairs) + "trials: 2")
    models = [(one.model, one.experiment.trial) for one in jobs if one.kind == "teacher"]
    assert sorted(models) == [
        ("resnet14", 1), ("resnet14", 2), ("resnet20", 1), ("resnet8", 1), ("resnet8", 2),
    ]  # fmt: skip


def test_blocks_of_one_plan(jobs_of):
    other = PLAN.replace("KD: kd, ", "").replace("CRD+KD: crd -a 1", "CRD: crd")
    blocks = [f"- {text.strip()}".replace("\n", "\n  ") for text in (PLAN, other)]
    jobs = jobs_of("\n".join(blocks))
    assert [one.label for one in jobs] == ["alone", "alone", "KD", "CRD+KD", "CRD"]


LONG = "--momentum 0.8 --weight_decay 0.001 --lr_decay_rate 0.25 --clip_grad 7.5"


def test_the_jobs_run_as_they_are_and_are_known_when_they_are_done(jobs_of, run, tmp_path):
    text = f"{PLAN}student_flags: {LONG}\ntransfer: [digits --image_size 8 --epochs 1]\n"
    flags = "--fake_size 48 --fake_classes 4 --image_size 8 --batch_size 16 --epochs 1"
    text = text.replace(f"flags: {flags}", f"teacher_flags: {flags}").replace(LONG, flags + LONG)
    text = text.replace("epochs 1--", "epochs 1 --").replace("KD: kd, ", "")
    jobs = jobs_of(text)
    assert [one.kind for one in jobs] == ["teacher", "teacher", "student", "probe", "probe"]
    assert [one.stage for one in jobs] == [0, 0, 1, 1, 2]
    assert "-????????" in jobs[2].place
    assert "_????????????_trial_1" in jobs[2].place
    for one in jobs:
        assert one.finished() is None
        run(f"{one.script.removesuffix('.py')} {' '.join(one.argv_now())}")
        assert f"{one.finished()}/run.json" in map(str, Path().rglob("run.json"))
    changed = jobs_of(text.replace("--nce_k 8", "--nce_k 4"))
    assert [bool(one.finished()) for one in changed] == [True, True, False, True, False]
    with pytest.raises(UserError, match="there is no .*resnet8_last.pth yet: it is made by python"):
        changed[4].argv_now()
    teacher = tmp_path / jobs[0].checkpoint
    teacher.write_bytes(teacher.read_bytes() + b" ")
    assert [bool(one.finished()) for one in jobs] == [True, True, False, True, False]


def test_a_size_that_the_images_decide_is_left_open(jobs_of):
    text = "dataset: folder\npairs: [resnet14 resnet8]\nmethods: {KD: kd}\nflags: --data_dir a/b"
    alone = jobs_of(text)[1]
    assert alone.place == "models/resnet8_b_trial_1"
    options = {**dict(alone.experiment.options), "image_size": 48}
    run = replace(alone.experiment, options=tuple(options.items()), data="f" * 64)
    assert job.same_but_data(alone.experiment, run)
    other = replace(run, options=tuple({**options, "epochs": 3}.items()))
    assert not job.same_but_data(alone.experiment, other)


def test_a_path_is_typed_so_that_the_shell_finds_it():
    assert job.quoted("a b-????/c_last.pth") == "'a b-'????/c_last.pth"
    assert job.quoted("") == "''"


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("dataset: fake", "data: fake", "data is none of dataset, pairs"),
        ("dataset: fake\n", "", "there is no dataset"),
        ("fake\n", "fkae\n", "no data set 'fkae' .did you mean fake"),
        ("[resnet14 resnet8]", "[resnet8]", "pairs: 'resnet8' is no 'teacher student'"),
        ("[resnet14 resnet8]", "resnet14 resnet8", "pairs: expected a list"),
        ("resnet14 ", "resnet15 ", "resnet15: no model 'resnet15'"),
        (" resnet8]", " resnet9]", "resnet9: no model 'resnet9'"),
        ("{KD: kd,", "{KD: kdd,", "KD, resnet14 resnet8: no method 'kdd'"),
        ("nce_k 8", "nce_kk 8", r"CRD\+KD, .*unknown argument --nce_kk: did you mean --nce_k\?"),
        ("KD: kd,", "KD: kd --nce_k 8,", "--nce_k is a flag of --distill crd"),
        ("KD: kd,", "KD: -a 1,", "methods: '-a 1' begins with no name"),
        ("KD: kd,", "KD: [kd],", "methods: expected a word"),
        ("KD: kd,", "alone: kd,", "methods: alone is the label of students"),
        ("KD: kd,", "CRD+KD: kd,", "line 3: CRD.KD is set a second time"),
        ("KD: kd,", "KD: kd, KD2: kd -a 0.9,", "KD and KD2 are the same run: python train_st"),
        ("KD: kd,", "FSP: fsp,", "FSP, resnet20 resnet8x4: --distill fsp: stem and stages"),
        ("--epochs 1", "--epochs 0", "argument --epochs: 0 is not at least 1"),
        ("--epochs 1", "--trial 7", "--trial is not for the flags of a plan"),
        ("--epochs 1", "--overwrite", "--overwrite is not for the flags of a plan"),
        ("--epochs 1", "--help", "--help is no flag of a plan"),
        ("--epochs 1", "--save_dir 'a", "flags: .*No closing quotation"),
        ("--epochs 1", "--epochs 1\ntrials: 0", "trials: 0 is no number of at least 1"),
        ("--epochs 1", "--epochs 1\nteachers: {vgg13: train}", "teachers: vgg13 is the teacher of"),
        ("--epochs 1", "--epochs 1\ntransfer: [stl11]", "transfer, stl11: no data set 'stl11'"),
        (PLAN, "", "a plan has lines such as"),
        (PLAN, "[]", "a plan has lines such as"),
        (PLAN, "a: [", "no YAML: while parsing"),
        (PLAN, "[a]: b", "line 1: a list or a table is no name"),
        (PLAN, "- &a [b]\n- *a", "line 1: an alias repeats it"),
        (PLAN, "&a [*a]", "line 1: an alias repeats it"),
    ],
)  # fmt: skip
def test_a_wrong_plan_is_explained(old, new, words, jobs_of):
    pairs = "[resnet20 resnet8x4]" if "fsp" in new else "[resnet14 resnet8]"
    with pytest.raises(UserError, match=f"a.yaml(:| is).*{words}"):
        jobs_of(PLAN.replace(old, new).replace("[resnet14 resnet8]", pairs))


def test_no_such_plan():
    with pytest.raises(UserError, match=r"no plan x\.yaml: give the path"):
        read_plan("x.yaml")


def test_a_method_of_ones_own(jobs_of, tmp_path):
    code = "from distiller_zoo import METHODS\nfrom distiller_zoo.pkt import PKT\n"
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "planned.py").write_text(
        f"{code}\n\n@METHODS.register('planned')\nclass Planned(PKT):\n    pass\n"
    )
    text = PLAN.replace("KD: kd, ", f"Own: planned --methods_dir {tmp_path}/own, ")
    try:
        assert [one.label for one in jobs_of(text)] == ["alone", "alone", "Own", "CRD+KD"]
    finally:
        METHODS._entries.pop("planned", None)
