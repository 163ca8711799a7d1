"""What each of two processes runs that tests/engine/test_pairs.py starts: a function of this file.

They are started by hand, as several machines start theirs.
"""

import functools
import os
import signal
import sys
import time
from datetime import timedelta

import torch
import torch.distributed as dist

from cli.main import main
from engine import distributed

CPU = torch.device("cpu")


def prepares(argv):
    """The main process needs longer than collectives of the training may take."""
    short = functools.partial(dist.init_process_group, timeout=timedelta(seconds=1))
    dist.init_process_group = short
    distributed.join(CPU)
    answer = distributed.on_main_process(lambda: time.sleep(2) or "prepared")
    os.environ["LOCAL_RANK"] = os.environ["RANK"]
    with distributed.local_main_process_first():
        time.sleep(0 if distributed.rank() else 2)
    sys.stderr.write(f"{answer}\n")


def first_is_killed(argv):
    """The main process, which keeps the store, is gone."""
    distributed.join(CPU)
    dist.barrier()
    if distributed.is_main_process():
        os.kill(os.getpid(), signal.SIGKILL)
    dist.barrier()


if __name__ == "__main__":
    main(globals()[sys.argv[1]])
