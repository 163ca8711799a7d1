"""Runs on two processes, one of which is killed."""

import signal
import socket
import time
from datetime import timedelta

from engine import distributed
from scripts.campaign.ground import RUNS, Case

WITHIN = 60.0  # seconds in which a process ends that has lost the other
OF_TWO = [name for name in RUNS if name != "probe"]


def lose(case: Case) -> None:
    """Kill one of two processes: the other ends with one line, and one process goes on."""
    name = case.chance.choice(OF_TWO)
    line = f"{RUNS[name]} --sync_bn --epochs 20"
    case.enter("empty")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    group = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    children = [
        case.start(line, {**group, "RANK": str(rank), "LOCAL_RANK": str(rank)}, be_impatient)
        for rank in range(2)
    ]
    victim = case.chance.randrange(2)
    time.sleep(case.chance.uniform(0, 3 * case.ground.seconds[name]))
    children[victim].send(signal.SIGKILL)
    case.log.append(f"rank {victim} is killed")
    case.note(children[victim].wait())
    case.judge(children[1 - victim].wait(WITHIN), (1, 2))
    case.run(f"{line} --resume")


def be_impatient() -> None:
    """Wait some seconds, and not half an hour, for a process that never starts."""
    distributed.TO_COME = timedelta(seconds=20)
