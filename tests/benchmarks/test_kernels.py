"""The benchmark of operations counts what a step computes."""

import torch

from benchmarks import kernels


def test_views_cost_nothing_and_the_rest_is_counted_once():
    x = torch.ones(4, 3)

    def function():
        y = x.view(12)[None].detach()  # views
        y = y + torch.empty(12)
        y.mul_(2)
        return y.sum()

    assert kernels.counted(function) == {"aten::add": 1, "aten::mul_": 1, "aten::sum": 1}


def test_a_bank_takes_the_teacher_out_of_a_step(capsys):
    names = ["kd", "dkd", "hint", "crld", "pskd"]
    kernels.main(["--methods", *names, "--pair", "resnet14,resnet8", "--most"])
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines() if " | " in line]
    assert rows[0] == ["| method", "live", "banked", "loss", "literal loss |"]
    numbers = {row[0].strip("| "): row[1:3] for row in rows[2:]}
    assert int(numbers["kd"][1]) < int(numbers["kd"][0])
    assert int(numbers["kd"][1]) < int(numbers["dkd"][1])
    assert numbers["hint"][1] == "-"  # it reads a map
