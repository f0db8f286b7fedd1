import json
import time

import pytest

from helpers import run_python
from pixtok.goodput import Ledger, describe

HANGS = """
import sys, time
from etils import epath
from pixtok.config import Deadlines
from pixtok.watchdog import Watchdog

def the_culprit():
    time.sleep(60)

with Watchdog(Deadlines(step=1), epath.Path(sys.argv[1])) as watchdog:
    watchdog.at(7)
    with watchdog.phase("compile", 60):
        with watchdog.phase("data", 1):
            pass
    with watchdog.phase("step", 1):
        the_culprit()
"""


def test_what_takes_too_long_ends_with_stacks_and_a_code_of_its_own(tmp_path):
    done = run_python("-c", HANGS, tmp_path / "run")
    assert done.returncode == 4, done.stderr
    assert "`step` did not end within its deadline (after step 7" in done.stderr
    stacks = tmp_path / "run" / "stacks-0.txt"
    assert str(stacks) in done.stderr
    assert "the_culprit" in stacks.read_text()


def test_goodput_counts_all_starts_and_leaves_lost_steps_out(tmp_path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    first = Ledger()
    first.resume(tmp_path, 0)
    for kind, seconds in (("compile", 4.0), ("step", 10.0)):
        with first.count(kind):
            now[0] += seconds
    first.steps = 10
    first.write(tmp_path, now=True)
    second = Ledger()
    second.resume(tmp_path, 5)
    with second.count("step"):
        now[0] += 10.0
    second.steps = 10
    second.write(tmp_path)  # too early
    assert json.loads((tmp_path / "goodput.json").read_text())["starts"] == 1
    total = second.total()
    assert total["seconds"] == {"compile": 4.0, "step": 20.0}
    assert total["goodput"] == pytest.approx(20 * (1 - 5 / 20) / 24)
    assert describe(total) == "goodput 62 % of 24 s: step 20.0 s, compile 4.0 s; 5 steps lost in 2 starts"
