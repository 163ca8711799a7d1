"""What Ray is asked for; no Ray is started."""

from types import SimpleNamespace

import pytest

from cli.plan import read_plan
from helper.errors import UserError
from sweeps.pool import Pool
from sweeps.table import Sweep

pytest.importorskip("ray")
ONE, TWO = "a" * 56, "b" * 56  # nodes
PLAN = """\
dataset: fake
pairs: [resnet14 resnet8, resnet20 resnet8]
methods: {KD: kd}
trials: 2
flags: --epochs 1
"""


class Remote:
    """In the place of a function of Ray: it keeps what it is asked for."""

    def __init__(self):
        self.asked = []

    def options(self, **how):
        self.asked.append(how)
        return self

    def remote(self, command, folder, log, cores):
        self.asked[-1] |= {"command": command, "cores": cores}
        return len(self.asked)


@pytest.fixture
def tasks(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.yaml").write_text(PLAN)
    return list(Sweep(read_plan("a.yaml"), 0).tasks.values())


@pytest.fixture
def pool():
    pool = Pool("", cpus=2, per_gpu=3)
    pool.nodes, pool.has_gpus, pool.run_child = [ONE, TWO], True, Remote()
    return pool


def test_runs_share_a_gpu_until_its_memory_is_too_little(pool, tasks):
    pool.submit(tasks[0], ["a"])
    tasks[0].whole_gpu = True
    pool.submit(tasks[0], ["a"])
    pool.has_gpus = False
    pool.submit(tasks[0], ["a"])
    assert [how["num_gpus"] for how in pool.run_child.asked] == [0.3333, 1, 0]
    for how in pool.run_child.asked:
        assert (how["num_cpus"], how["cores"], how["max_retries"]) == (2, 2, 0)


def test_students_of_a_teacher_go_to_one_node(pool, tasks):
    homes = {}
    for task in tasks:
        strategy = pool.strategy(task)
        if task.job.kind == "teacher":
            assert strategy == "DEFAULT"
        else:
            assert strategy.soft
            homes.setdefault(task.job.source, set()).add(strategy.node_id)
    assert sorted(homes.values(), key=min) == [{ONE}, {TWO}]
    pool.nodes = [ONE]
    assert pool.strategy(tasks[-1]) == "DEFAULT"


def test_more_cores_than_there_are(pool):
    ended = []
    node = {"Alive": True, "NodeID": "one", "Resources": {"CPU": 1.0}}
    pool.ray = SimpleNamespace(
        init=lambda **_: None, nodes=lambda: [node], shutdown=lambda: ended.append(1)
    )
    with pytest.raises(UserError, match="no machine has 2 CPU cores: give fewer --cpus"), pool:
        pass
    assert ended


def test_a_cluster_that_is_not_there(pool):
    def init(address, **_):
        raise ConnectionError("nobody answers")

    pool.ray, pool.address = SimpleNamespace(init=init), "10.0.0.1:6379"
    with pytest.raises(UserError, match="Ray does not start at 10.0.0.1:6379: nobody ans"), pool:
        pass
