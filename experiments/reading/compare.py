"""Whether runs came out the same: results here against those of a commit.

python experiments/reading/compare.py [REVISION]    # HEAD

Move results away, let study.py train or read them anew, and this tells in how many images of each test they differ: in
how many characters are wrong.
"""

import json
import subprocess
import sys
from typing import Any

import numpy as np

import study
from pixtok.errors import InputError


def _git(*words: str) -> str | None:
    """What it says; None where it fails."""
    found = subprocess.run(["git", *words], cwd=study.RESULTS, capture_output=True, text=True)
    return found.stdout if found.returncode == 0 else None


def differences(one: dict[str, Any], other: dict[str, Any]) -> str:
    """Of two results of a run, `other` the one before, in words."""
    if one["settings"] != other["settings"] or one["tests"].keys() != other["tests"].keys():
        return "other settings, not compared"
    said = [f"validation {one['validation']:.4f} (before {other['validation']:.4f})"]
    for test in one["tests"]:
        now_N, before_N = (study.decode(found["tests"][test]["distances"]) for found in (one, other))
        shares = [f"{100 * np.mean(distance_N == 0):.1f} %" for distance_N in (now_N, before_N)]
        count = np.count_nonzero(now_N != before_N)
        said.append(f"{test}: {count:,} of {len(now_N):,} images differ, exact {shares[0]} (before {shares[1]})")
    minutes = (sum(found["minutes"].values()) for found in (one, other))
    return "; ".join([*said, "{:.1f} minutes ({:.1f})".format(*minutes)])


def main(revision: str = "HEAD") -> None:
    """Print a line for each result that was made anew or is missing, and how many are as before.  Raises InputError."""
    committed = _git("ls-tree", "--name-only", f"{revision}^{{commit}}", "./")
    if committed is None:
        raise InputError(f"{revision} is no commit")
    for name in committed.split():
        if name.endswith(".json") and not (study.RESULTS / name).exists():
            print(f"{name.removesuffix('.json')}: not here")
    same = 0
    for file in sorted(study.RESULTS.glob("*.json")):
        text, before = file.read_text(), _git("show", f"{revision}:./{file.name}")
        if text == before:
            same += 1
        else:
            told = f"not in {revision}" if before is None else differences(json.loads(text), json.loads(before))
            print(f"{file.stem}: {told}")
    print(f"{same} results are those of {revision}")


if __name__ == "__main__":
    try:
        main(*sys.argv[1:2])
    except InputError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
