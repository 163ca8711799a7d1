"""Steps that are captured: by make_fx, in the place of the CUDA graph that a CPU has not."""

import json
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch.fx.experimental.proxy_tensor import make_fx

from cli.objective import kd_and_method, method_setup
from cli.parse import parse_student
from dataset import DATASETS
from dataset.loader import Loader, Loading
from distiller_zoo import METHODS
from engine.device import Numerics, set_determinism
from engine.fit import train_epoch
from engine.graph import Capture, StageStep, cuda_capture, why_not
from engine.objective import Distillation
from engine.recipe import Schedule
from engine.stage import Stage, first_stage, main_stage
from engine.teacher import BankedTeacher, LiveTeacher, rows_read
from helper.errors import UserError
from models import MODELS
from runs import checkpoint
from tests.conftest import killed, only

# Operations that make the host wait for a GPU, or read there whether they came to an end.
READ_BY_THE_HOST = {
    "aten._linalg_eigh", "aten._linalg_svd", "aten._local_scalar_dense", "aten._unique2",
    "aten.bincount", "aten.equal", "aten.lift_fresh_copy", "aten.masked_select", "aten.nonzero",
}  # fmt: skip
LINES = (
    "--distill kd",
    *(f"--distill {name} --warmup 3" for name in METHODS if name not in ("kd", "dcd")),  # dcd: icd
    "--distill kd --sdd 1,2 --tekap --logit_stand --clip_grad 1",
    "--distill dkd --ctkd",
    "--distill hint --optimizer adamw --clip_grad 1 --backbone_rate 0.01",
    "--distill hint --dot 0.05 --backbone_rate 0.01",
    "--distill hint --dot 0.05 --clip_grad 1",
    "--distill crd --tekap --nce_k 12 --warmup 3",
    "--distill rrd --nce_k 12 --rrd_memory momentum --warmup 3",
    "--distill mlkd --mlkd_strong",
    "--distill crd --nce_k 12 --crd_memory queue --warmup 3",
)


class Traced:
    """In the place of `cuda_capture`: the operations of a step, issued again by each replay."""

    def __init__(self):
        self.reads_on_host = False

    def __call__(self, step, stage):
        step()  # the optimizer's first step makes its momentum
        graph = make_fx(lambda: step())()
        self.reads_on_host |= any(map(read_by_the_host, graph.graph.nodes))
        return torch.no_grad()(graph)


def read_by_the_host(node) -> bool:
    """Whether a GPU's value decides what the host does next; a mask is made a list of places."""
    name = str(node.target).rpartition(".")[0]
    masks = name.startswith("aten.index") and any(
        index.meta["val"].dtype is torch.bool for index in node.all_input_nodes[1:2]
    )
    return name in READ_BY_THE_HOST or masks


@dataclass
class Case:
    """A training of `epochs` epochs of two batches of 8 images and one of 3."""

    line: str = "--distill kd"
    banked: bool = False
    device: str = "cpu"
    amp: str = "off"
    schedule: Schedule = Schedule(0.05, (1,), 0.1)
    epochs: int = 2

    def stages(self) -> tuple[list[Stage], Loader]:
        """The stages of a student with dropout, and its data."""
        torch.manual_seed(0)
        numerics = Numerics(torch.device(self.device), self.amp)
        options = parse_student(self.line.split())
        data = DATASETS["fake"].load(DATASETS["fake"].Options(fake_size=19, image_size=16))
        strong = options.choice.views_per_image(options) > 1
        train = Loader(data, "train", 8, Loading(1, numerics.device, strong=strong))
        student, network = (MODELS["resnet8"](len(data.classes)) for _ in range(2))
        kd, method = kd_and_method(options, method_setup(student, network, 16, train))
        teacher = LiveTeacher(network, numerics)
        if self.banked:
            teacher = BankedTeacher(network, numerics, train, rows_read([kd]), None, 8)
        task = Distillation(student, teacher, kd, method, options.distill, options)
        task.run_student = lambda images: student.features(F.dropout(images, 0.1))
        first = first_stage(task, 0.0625, options, self.epochs)
        stages = [first, main_stage(task, self.schedule, options, options.dot)]
        return [stage for stage in stages if stage], train

    def train(self, capture: Capture | None) -> "Trained":
        """Train all stages, each by a step of its own."""
        stages, train = self.stages()
        measured, replays = [], 0
        recorder = SimpleNamespace(log_step=lambda stage, step, means: measured.append(means))
        for stage in stages:
            step = StageStep(stage, stage.task, capture)
            for epoch in range(1, self.epochs + 1):
                stage.task.begin_epoch(epoch, 2, epoch)
                train_epoch(stage, step, train, epoch, recorder, print_freq=1)
            replays += step.replays
        tensors = [*stage.task.state_dict().values(), *stage.momenta().values()]
        return Trained(measured, tensors, replays, stage.task.capturable)


class Trained(NamedTuple):
    measured: list[dict[str, float]]  # in each step
    tensors: list[torch.Tensor]
    replays: int
    capturable: bool


def assert_equal(found: Trained, wanted: Trained, rtol: float = 0.0) -> None:
    for a, b in zip(found.measured, wanted.measured, strict=True):
        assert a == pytest.approx(b, rel=rtol, abs=0)
    for a, b in zip(found.tensors, wanted.tensors, strict=True):
        torch.testing.assert_close(a, b, rtol=rtol, atol=rtol)


@pytest.mark.filterwarnings("ignore:--nce_k")
@pytest.mark.parametrize("line", LINES)
def test_a_captured_step_trains_as_an_eager_one(line):
    traced, case = Traced(), Case(line)
    eager, captured = case.train(None), case.train(traced)
    # Sums of reviewkd's gradients have another memory layout when traced: rounded otherwise.
    assert_equal(captured, eager, 1e-5 if "reviewkd" in line else 0.0)
    assert (eager.replays, captured.replays) == (0, 4 * len(case.stages()[0]))
    assert captured.capturable == (not traced.reads_on_host)


def test_a_captured_step_reads_each_epochs_rows_of_the_teacher():
    case = Case(banked=True)
    captured = case.train(Traced())
    assert_equal(captured, case.train(None))
    assert captured.replays == 4


def test_what_the_host_reads_is_found():
    def reads(x):
        return x[x > 0].sum(), x.nonzero(), x[torch.tensor([1])]

    nodes = make_fx(reads)(torch.ones(3)).graph.nodes
    assert [read_by_the_host(node) for node in nodes].count(True) == 3


# Which steps are captured.


def test_what_keeps_a_step_from_being_captured_is_said():
    (stage,), _ = Case().stages()
    assert why_not(stage) == "cpu is no GPU"
    stage.task.numerics = replace(stage.task.numerics, device=torch.device("cuda"))
    assert why_not(stage) == ""
    stage.scaler = torch.amp.GradScaler("cpu")
    assert why_not(stage).startswith("--amp fp16 scales")
    (stage,), _ = Case("--distill kdsvd").stages()
    stage.task.numerics = replace(stage.task.numerics, device=torch.device("cuda"))
    assert why_not(stage) == "the method reads values on the host"


def test_several_processes_capture_nothing(monkeypatch):
    (stage,), _ = Case().stages()
    stage.task.numerics = replace(stage.task.numerics, device=torch.device("cuda"))
    assert why_not(stage) == ""
    monkeypatch.setattr("engine.graph.world_size", lambda: 2)
    assert why_not(stage) == "there are several processes"


def test_a_noisy_teacher_is_captured_where_the_method_is(monkeypatch):
    monkeypatch.setattr(METHODS["crd"], "capturable", False)
    (stage,), _ = Case("--distill crd --nce_k 12 --tekap").stages()
    assert not stage.task.capturable


class PretendedGraph:
    """What `torch.cuda` has for graphs, without a GPU: a capture runs what it captures."""

    refuses = False

    def __init__(self, monkeypatch):
        self.calls = []
        stream = SimpleNamespace(wait_stream=lambda other: self.calls.append("wait"))
        monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: self)
        monkeypatch.setattr(torch.cuda, "Stream", lambda: stream)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda: stream)
        monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
        monkeypatch.setattr(torch.cuda, "graph", self.capturing)

    @contextmanager
    def capturing(self, graph, stream, capture_error_mode):
        self.calls.append("begin")
        yield
        self.calls.append("end")
        if self.refuses:
            raise RuntimeError("operation not permitted when stream is capturing\nmore")

    def register_generator_state(self, generator):
        self.calls.append(generator)

    def replay(self):
        self.calls.append("replay")


def test_a_cuda_graph_is_captured_after_a_warm_up_and_knows_the_generator(monkeypatch):
    (stage,), _ = Case("--distill kd --tekap").stages()
    pretended, weight = PretendedGraph(monkeypatch), next(stage.task.student.parameters())

    def step():
        without = "" if weight.grad is None else " with a gradient"
        weight.grad = torch.ones_like(weight)
        pretended.calls.append(f"step{without}")
        return measured

    measured = torch.zeros(2)
    replay = cuda_capture(step, stage)
    assert pretended.calls == [
        stage.task.generator, "wait", "step", *2 * ["step with a gradient"], "wait", "begin",
        "step", "end",
    ]  # fmt: skip
    assert replay() is measured
    assert pretended.calls[-1] == "replay"


def test_a_step_that_cannot_be_captured_is_one_line(monkeypatch):
    (stage,), _ = Case().stages()
    PretendedGraph(monkeypatch).refuses = True
    with pytest.raises(UserError) as error:
        cuda_capture(lambda: torch.zeros(1), stage)
    assert str(error.value) == (
        "--cuda_graph: the step cannot be captured (operation not permitted when stream is "
        "capturing); leave the flag out"
    )


RUN = (
    "train_student --path_t teacher.pth --model_t resnet8 --model_s resnet8 --distill kd "
    "--dataset fake --fake_size 19 --image_size 16 --fake_classes 4 --batch_size 8 --epochs 3"
)


@pytest.fixture
def started(run, tmp_path):
    """Run more flags -> the folder and its numbers of each epoch."""
    torch.save({"model": MODELS["resnet8"](4).state_dict()}, tmp_path / "teacher.pth")

    def started(flags):
        run(f"{RUN} {flags}")
        folder = only(tmp_path / flags.split()[1] / "student_model")
        lines = (folder / "metrics.jsonl").read_text().splitlines()
        return folder, [json.loads(line) for line in lines]

    return started


def test_without_a_gpu_a_run_says_so_and_trains(started, capsys):
    _, epochs = started("--save_dir a --cuda_graph")
    assert "warning: --cuda_graph: no step is captured: cpu is no GPU\n" in capsys.readouterr().err
    assert [epoch["graph_replays"] for epoch in epochs] == [0, 0, 0]


def test_a_captured_run_counts_its_replays_and_goes_on_after_a_kill(started, monkeypatch):
    wanted, epochs = started("--save_dir a")
    assert "graph_replays" not in epochs[0]
    monkeypatch.setattr("engine.graph.why_not", lambda *_: "")
    monkeypatch.setattr("engine.graph.cuda_capture", Traced())
    with killed():
        started("--save_dir b --cuda_graph")
    folder, epochs = started("--save_dir b --cuda_graph --resume")
    assert [epoch["graph_replays"] for epoch in epochs] == [2, 2, 2]
    assert json.loads((folder / "run.json").read_text())["last"]["graph_replays"] == 2
    one, other = (checkpoint.load(path / "resume.pth") for path in (folder, wanted))
    assert one["optimizer"]["param_groups"] == other["optimizer"]["param_groups"]
    assert all(torch.equal(value, other["task"][key]) for key, value in one["task"].items())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("amp", ["off", "bf16"])
@pytest.mark.parametrize("line", ["kd", "crd --nce_k 12", "dkd", "rkd", "kd --tekap"])
def test_a_cuda_graph_trains_as_the_eager_step_for_200_steps(line, amp, monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    exact = Schedule(0.0625, (1,), 0.125)  # rates that float32 has
    case = Case(f"--distill {line}", device="cuda", amp=amp, schedule=exact, epochs=67)
    set_determinism(True)
    try:
        eager, captured = case.train(None), case.train(cuda_capture)
    finally:
        set_determinism(False)
    assert_equal(captured, eager)
    assert captured.replays == 134
