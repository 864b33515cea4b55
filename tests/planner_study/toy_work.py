"""A client of a study and its work, run as processes that are killed: `python -m tests.planner_study.toy_work DIR`."""

from __future__ import annotations

import os
import signal
import sys
import time
from functools import partial
from pathlib import Path

from planner.study import work
from planner.study.pools import Batch, on_this_machine
from planner.study.spec import Study, study_of
from planner.study.store import OK, Row, writing

CASES = 40
KILLS_ONCE, POISON = 17, 23
CLIENT_DIES_AT = 12


def study(folder: Path) -> Study:
    data = {"base": {"folder": str(folder)}, "grid": {"number": list(range(CASES))}}
    return study_of(data, ("folder", "number"), where="toy", folder=folder)


def answer(number: int) -> dict[str, int]:
    return {"square": number * number}


def toy(batch: Batch) -> tuple[Row, ...]:
    """Every run leaves a line; one case kills its worker the first time, one (where asked for) every time."""
    rows = []
    if (Path(batch[0][1]["folder"]) / "wait").exists() and batch[0][1]["number"] >= CLIENT_DIES_AT:
        (Path(batch[0][1]["folder"]) / "endless").touch()
        time.sleep(3600)
    for digest, case in batch:
        folder, number = Path(case["folder"]), case["number"]
        with (folder / "runs.log").open("a") as log:
            log.write(f"{number}\n")
        marker = folder / "killed"
        if number == KILLS_ONCE and not marker.exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if number == POISON and (folder / "poison").exists():
            os.kill(os.getpid(), signal.SIGKILL)
        rows.append(Row(digest=digest, status=OK, result=answer(number)))
    return tuple(rows)


def main(folder: Path, *, dies: bool, endless: bool = False) -> work.Outcome:
    work.BATCH = {"simulate": 4, "plan": 1}
    asked = study(folder)
    if endless:
        (folder / "wait").touch()

    def tell(done: int, total: int, failed: int, left_s: float | None) -> None:
        if dies and done >= CLIENT_DIES_AT:
            os.kill(os.getpid(), signal.SIGKILL)

    with writing(folder / "toy.db") as store:
        return work.run_study(asked, store, toy, partial(on_this_machine, jobs=2), progress=tell)


if __name__ == "__main__":
    print(main(Path(sys.argv[1]), dies="dies" in sys.argv, endless="endless" in sys.argv))
