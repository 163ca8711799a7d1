"""Runs that are killed at random moments, and resumed."""

import signal
import time

from scripts.campaign.ground import RUNS, Case

SIGNALS = [signal.SIGKILL] * 6 + [signal.SIGTERM, signal.SIGHUP, signal.SIGINT]


def kill(case: Case) -> None:
    """Kill a run, often its resumption too, then let it end: it is the run that was never killed.

    One case in six begins with a finished run that is started anew.
    """
    chance = case.chance
    name = chance.choice(list(RUNS))
    overwrites = chance.random() < 1 / 6
    case.enter("finished" if overwrites else "empty", name)
    flag = "--overwrite" if overwrites else "--resume"
    for _ in range(chance.choice([1, 1, 2])):
        child = case.start(f"{RUNS[name]} {flag}")
        time.sleep(chance.uniform(0, case.ground.seconds[name]))
        number = chance.choice(SIGNALS)
        child.send(number)
        outcome = child.wait()
        if outcome.code < 0:
            case.note(outcome)
        else:
            case.judge(outcome, (0, 130) if number == signal.SIGINT else (0,))
    if case.run(f"{RUNS[name]} --resume", (0, 2) if overwrites else (0,)).code:
        case.run(f"{RUNS[name]} --overwrite")
    case.expect_whole(name)
