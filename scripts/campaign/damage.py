"""Files in which bytes are flipped, or that are cut off."""

import json
import shutil
from pathlib import Path

from scripts.campaign.ground import FAKE, RUNS, Case, differences, numbers, run_below

EVAL = f"eval {FAKE} --json scores.json -c"
SCORES = ("acc", "acc_top5", "loss", "images")


def damage(case: Case) -> None:
    """Damage a file. Whoever reads it says so, or has the result of the whole file."""
    case.chance.choice([damage_source, damage_run, damage_run, damage_run])(case)


def damage_source(case: Case) -> None:
    """Damage the checkpoint of the teacher, or the probed one."""
    name = case.chance.choice([name for name in RUNS if name != "teacher"])
    case.enter("empty")
    spoil(case, case.folder / "teacher" / "last.pth")
    if not case.run(RUNS[name], (0, 2)).code:
        whole = run_below(case.ground.place("finished", name))
        case.expect(numbers(run_below(case.folder)) == numbers(whole), "other numbers, in silence")


def damage_run(case: Case) -> None:
    """Damage a file in the folder of a run, then read it, resume the run and start it anew."""
    name, state = case.chance.choice(list(RUNS)), case.chance.choice(["stopped", "finished"])
    case.enter(state, name)
    folder = run_below(case.folder)
    files = sorted(path for path in folder.iterdir() if path.is_file() and path.stat().st_size)
    (file,) = case.chance.choices(files, [4 if path.suffix == ".pth" else 1 for path in files])
    shutil.copy(file, case.folder / "whole")
    spoil(case, file)
    damaged = file.read_bytes()
    if file.suffix == ".pth" and file.name != "resume.pth":
        evaluate(case, file)
    case.run("compare save", (0, 2))
    if not case.run(f"{RUNS[name]} --resume", (0, 2)).code:
        # Nobody has read what is damaged.
        untouched = file.exists() and file.read_bytes() == damaged
        found = differences(run_below(case.ground.place("finished", name)), folder)
        case.problems += [text for text in found if not (untouched and text.startswith(file.name))]
    case.run(f"{RUNS[name]} --overwrite")
    case.expect_whole(name)


def spoil(case: Case, file: Path) -> None:
    """Flip a bit, mostly; or zero some bytes, or cut the file off."""
    content, chance = bytearray(file.read_bytes()), case.chance
    at = chance.randrange(len(content))
    how = chance.choice(["flip", "flip", "flip", "flip", "zero", "cut"])
    if how == "flip":
        content[at] ^= 1 << chance.randrange(8)
    elif how == "zero":
        content[at : at + 512] = bytes(len(content[at : at + 512]))
    else:
        del content[at:]
    file.write_bytes(content)
    case.log.append(f"{how} at {at} of {file.relative_to(case.folder)}")


def evaluate(case: Case, file: Path) -> None:
    """Scores of a damaged checkpoint are those of the whole one, or there are none."""
    if case.run([*EVAL.split(), str(file)], (0, 2)).code:
        return
    mine, whole = json.loads((case.folder / "scores.json").read_text()), case.folder / "whole"
    case.run([*EVAL.split(), str(whole)])
    scores = json.loads((case.folder / "scores.json").read_text())
    case.expect(all(scores[key] == mine[key] for key in SCORES), "other scores, in silence")
