"""Attack every command and count what was not as it should be.

sh scripts/campaign.sh [MINUTES] [--part PART] [--cases N] [--seed S] [--jobs N]
sh scripts/campaign.sh --seed S --part PART --case N      repeats one case and shows all of it
"""

import argparse
import multiprocessing
import os
import random
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from scripts.campaign.damage import damage
from scripts.campaign.environment import surround, surroundings
from scripts.campaign.ground import Case, Check, Ground
from scripts.campaign.hostile import attack
from scripts.campaign.kills import kill
from scripts.campaign.lines import bound, fuzz
from scripts.campaign.lost import lose
from scripts.campaign.operations import operate
from scripts.campaign.sizes import size


class Part(NamedTuple):
    """One way to attack, and how many cases a full run has of it."""

    cases: int
    check: Check


PARTS = {
    "kills": Part(500, kill),
    "operations": Part(400, operate),
    "damage": Part(300, damage),
    "hostile": Part(400, attack),
    "bounds": Part(1400, bound),
    "lines": Part(5000, fuzz),
    "environment": Part(len(surroundings()), surround),
    "sizes": Part(250, size),
    "lost": Part(40, lose),
}


class Verdict(NamedTuple):
    """What became of a case."""

    part: str
    number: int
    problems: list[str]
    log: list[str]


def attempt(part: str, number: int, seed: int, ground: Ground) -> Verdict:
    """Run one case in a folder of its own."""
    with tempfile.TemporaryDirectory(dir=ground.folder, ignore_cleanup_errors=True) as folder:
        case = Case(part, number, seed, ground, Path(folder))
        try:
            PARTS[part].check(case)
        except Exception as error:  # what a command left is not as a check expects it
            case.problems.append(f"it cannot be judged: {type(error).__name__}: {error}")
    return Verdict(part, number, case.problems, case.log)


def attempt_all(cases: list[tuple[str, int]], arguments, ground: Ground) -> list[Verdict]:
    """All cases, as many at a time as there are jobs; those begun before the time is over."""
    end = time.monotonic() + 60 * arguments.minutes if arguments.minutes else float("inf")
    verdicts: list[Verdict] = []
    fork = multiprocessing.get_context("fork")
    bar = tqdm(total=len(cases), disable=None)  # None: quiet when stderr is no terminal
    with bar, ProcessPoolExecutor(arguments.jobs, mp_context=fork) as pool:
        for block in range(0, len(cases), 10 * arguments.jobs):
            if time.monotonic() > end:
                break
            chosen = cases[block : block + 10 * arguments.jobs]
            futures = [pool.submit(attempt, *case, arguments.seed, ground) for case in chosen]
            for future in futures:
                verdicts.append(future.result())
                bar.update()
                if verdicts[-1].problems:
                    bar.write(describe(verdicts[-1], arguments.seed))
    return verdicts


def describe(verdict: Verdict, seed: int) -> str:
    """A failed case and how to repeat it."""
    repeat = f"sh scripts/campaign.sh --seed {seed} --part {verdict.part} --case {verdict.number}"
    return "\n".join([f"FAILED: {'; '.join(verdict.problems)}", *verdict.log, repeat, ""])


def table(verdicts: list[Verdict]) -> str:
    """Cases tried, as they should be, and failed, of each part."""
    tried = Counter(verdict.part for verdict in verdicts)
    failed = Counter(verdict.part for verdict in verdicts if verdict.problems)
    rows = [(part, tried[part], failed[part]) for part in PARTS if tried[part]]
    rows.append(("all", tried.total(), failed.total()))
    lines = ["| part | tried | as it should | failed |", "| --- | ---: | ---: | ---: |"]
    lines += [f"| {name} | {n:,} | {n - wrong:,} | {wrong:,} |" for name, n, wrong in rows]
    return "\n".join(lines)


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="sh scripts/campaign.sh", description=__doc__)
    parser.add_argument("minutes", nargs="?", type=float, help="begin no case after these")
    parser.add_argument("--part", action="append", choices=list(PARTS), help="this part alone")
    parser.add_argument("--cases", type=int, help="so many of each part")
    parser.add_argument("--case", type=int, help="this one alone, and say all of it")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="cases at a time")
    return parser.parse_args(argv)


def main(argv: list[str]) -> int:
    arguments = parse(argv)
    parts = arguments.part or list(PARTS)
    print(f"seed {arguments.seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="campaign-") as folder:
        ground = Ground(Path(folder))
        if arguments.case is not None:
            verdicts = [attempt(part, arguments.case, arguments.seed, ground) for part in parts]
            print("\n".join(describe(verdict, arguments.seed) for verdict in verdicts))
        else:
            cases = [
                (part, number)
                for part in parts
                for number in range(arguments.cases or PARTS[part].cases)
            ]
            random.Random(arguments.seed).shuffle(cases)  # so that a short run has some of each
            verdicts = attempt_all(cases, arguments, ground)
    print(table(verdicts))
    return int(any(verdict.problems for verdict in verdicts))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
