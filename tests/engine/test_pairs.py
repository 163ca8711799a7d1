"""Two processes that were started by hand; and one that was started as if there were others."""

import os
import re
import signal
import socket
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from cli.main import main
from engine import distributed
from helper.errors import UserError

ROOT = Path(__file__).resolve().parent.parent.parent


def place_to_meet() -> dict[str, str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}


def pair(function: str) -> list[tuple[int, str]]:
    """Run a function of tests/engine/pair.py on two processes -> exit code and stderr of each."""
    meeting, started = place_to_meet(), []
    for rank in range(2):
        environment = {**os.environ, **meeting, "RANK": str(rank), "WORLD_SIZE": "2"}
        command = [sys.executable, "-m", "tests.engine.pair", function]
        how = {"cwd": ROOT, "env": environment, "text": True, "stderr": subprocess.PIPE}
        started.append(subprocess.Popen(command, **how))
    said = [process.communicate(timeout=120)[1] for process in started]
    return [(process.returncode, text) for process, text in zip(started, said, strict=True)]


def errors(text: str) -> list[str]:
    assert "Traceback" not in text, text
    return [line for line in text.splitlines() if line.startswith("error: ")]


def test_what_one_process_prepares_may_take_longer_than_a_collective():
    for code, said in pair("prepares"):
        assert (code, said.splitlines()[-1]) == (0, "prepared"), said


def test_when_the_first_process_is_killed_the_other_says_it():
    (killed, _), (code, said) = pair("first_is_killed")
    assert killed == -signal.SIGKILL
    assert code == 1
    (line,) = errors(said)
    assert re.fullmatch(
        r"error: a process of this run ended \([^(]*(closed|reset) by peer[^(]*\); "
        "--resume goes on after the last whole epoch",
        line,
    )


def end_of(command, monkeypatch, capsys) -> tuple[int, list[str]]:
    """Exit code and lines on stderr of a command that ends with an error."""
    monkeypatch.setattr(sys, "argv", ["command"])
    with pytest.raises(SystemExit) as stop:
        main(command)
    return stop.value.code, capsys.readouterr().err.splitlines()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"RANK": "1"}, "RANK is 1, but WORLD_SIZE is not set"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, "RANK is 2, but WORLD_SIZE is 2"),
        ({"RANK": "0", "WORLD_SIZE": "x"}, "WORLD_SIZE is 'x', no whole number"),
        ({"RANK": "0", "WORLD_SIZE": "0"}, "RANK is 0, but WORLD_SIZE is 0"),
        ({"RANK": "-1", "WORLD_SIZE": "2"}, "RANK is '-1', no whole number"),
        ({"LOCAL_RANK": "1.5"}, "LOCAL_RANK is '1.5', no whole number"),
    ],
)
def test_an_environment_of_no_process_group(given, said, monkeypatch, capsys):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    code, lines = end_of(lambda argv: pytest.fail("it ran"), monkeypatch, capsys)
    assert code == 2
    assert lines == [
        f"error: {said}: start processes with torchrun, or unset RANK, WORLD_SIZE and LOCAL_RANK "
        "to run one"
    ]


@pytest.mark.parametrize(("rank", "other"), [(0, 1), (1, 0)])
def test_waiting_says_for_whom(rank, other, monkeypatch, capfd):
    meeting = place_to_meet()
    for name, value in {**meeting, "RANK": str(rank), "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(distributed, "SILENCE", 0.1)
    monkeypatch.setattr(distributed, "TO_COME", timedelta(seconds=1))
    with pytest.raises(UserError, match="WORLD_SIZE is 2, but the processes cannot be joined"):
        distributed.join(torch.device("cpu"))
    port = meeting["MASTER_PORT"]
    assert f"waiting for process {other} of 2 at 127.0.0.1:{port}\n" in capfd.readouterr().err


def test_a_lost_process_is_told_from_a_mistake_by_its_type():
    gloo = (
        "[/src/third_party/gloo/gloo/transport/tcp/pair.cc:553] Connection closed by peer [::1]:9"
    )
    advice = ". This is typically caused by a remote worker crashing. Check the logs."
    for error, said in {
        RuntimeError(gloo + advice): "Connection closed by peer [::1]:9",
        dist.DistBackendError("NCCL error: unhandled system error"): None,
        dist.DistNetworkError("Connection reset by peer"): None,
        dist.DistStoreError("wait timeout"): None,
        distributed.ProcessLost("this process was told to end"): None,
    }.items():
        assert distributed.is_loss_of_a_process(error)
        assert distributed.cause(error) == (said or str(error))
    for mistake in (
        RuntimeError("cannot restore the nccl store"),
        ValueError("gloo: broken pipe, connection reset"),
        RuntimeError("expected gloo/transport to be on one device"),
    ):
        assert not distributed.is_loss_of_a_process(mistake)
