"""The benchmark of a GPU runs without one; its numbers mean nothing then."""

from benchmarks import gpu

TINY = "--device cpu --pair resnet8,resnet8 --images 100 --batch_size 32 --steps 1 --rounds 1"


def test_all_ways_but_the_captured_one_are_timed_on_a_cpu(run, monkeypatch, capsys):
    monkeypatch.setattr(gpu, "script", lambda line: run(line.replace(".py", "", 1)))
    gpu.main([*TINY.split(), "--nce_k", "8", "--amp", "off", "--epochs", "1"])
    printed = capsys.readouterr().out
    rows = [line for line in printed.splitlines() if line.startswith("|")]
    assert rows[0].startswith("| method | amp | published, ms | live, ms | banked, ms |")
    assert [row.split()[1] for row in rows[2:]] == ["kd", "crd", "dkd", "rkd"]
    assert all(row.endswith("| - / - / - |") for row in rows[2:])
    for seed in (1, 2):
        assert f"1 epochs of kd, off, seed {seed}: " in printed
