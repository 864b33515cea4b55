"""One rank of a group: measures collectives, and the block and the step over ranks. `measure` starts it.

By hand, on one machine or (with the same command on each) on several:

    torchrun --nnodes 2 --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint HOST:29500 \\
        -m calibration.harness.group_worker --device cuda --suite full --out DIR

Needs Python, torch and numpy, and the checkout as the working folder. Rank 0 appends to
DIR/<device>/rows.csv and decides; all ranks run every point. A rank that fails inside a collective
ends the group: whoever started it starts it again behind that point.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import get_args

from calibration.harness.group import distributed, open_group
from calibration.harness.points import Point, Suite, torch_module
from calibration.harness.rows import OUT_OF_TIME, RowWriter, key, point_row, read_rows
from calibration.harness.runner import run_point
from calibration.harness.session import Session, one_rank, open_session, write_environment
from calibration.harness.suites import GROUP_FAMILIES, budget_s

START, DONE = "@start", "@done"  # lines for the program that started the group
MEASURE, LEAVE, LATE = 0, 1, 2
LOST = 3  # exit code: the group must be started anew
Say = Callable[[str], None]


def plan(suite: Suite, device: str, families: tuple[str, ...], ranks: int) -> list[Point]:
    """Points of the group families in the order in which they are measured."""
    kind = device.split(":")[0]
    return [point for family in families for point in GROUP_FAMILIES[family](suite, kind, ranks)]


def run(
    session: Session,
    suite: Suite,
    points: list[Point],
    path: Path,
    *,
    first: int,
    late_s: float,
    resume: bool,
    say: Say,
) -> bool:
    """Measure points[first:] with the other ranks; False when the group is no longer usable.

    late_s: seconds of the budgets that an earlier group has used.
    """
    group = session.bench.group
    assert group is not None
    leads = group.rank == 0
    done = {key(row): row["status"] for row in read_rows(path)} if leads and resume else {}
    begin = time.monotonic() - late_s
    deadline, family = begin, ""
    writer = RowWriter(path) if leads else None
    just = False  # the point before this one was measured now
    for index, point in enumerate(points):
        if point.family != family:
            family = point.family
            deadline += budget_s(suite, session.bench.device.split(":")[0], family)
        if index < first:
            continue
        row = point_row(point, session.described)
        status = done.get(key(row))
        what = MEASURE
        if status is not None and not status.startswith(OUT_OF_TIME):
            what = LEAVE
        elif time.monotonic() > deadline and not (point.follows and just):
            what = LATE if status is None else LEAVE
        what = int(group.agree(what))
        just = what == MEASURE
        if what == MEASURE:
            say(f"{START} {index} {point.label}")
            row, usable = run_point(point, session.bench, session.monitor, session.described)
        else:
            row, usable = row | {"status": f"{OUT_OF_TIME} for {family}"}, True
        if writer is not None and what != LEAVE:
            writer.write(row)
            say(f"{DONE} {index}")
        if not usable:
            return False
    return True


def main(argv: list[str] | None = None) -> int:
    """The program of one rank."""
    parser = argparse.ArgumentParser(prog="python -m calibration.harness.group_worker")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--suite", default="quick", choices=get_args(Suite))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--family", action="append", choices=tuple(GROUP_FAMILIES))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="index of the first point to measure")
    parser.add_argument("--late", type=float, default=0.0, help="seconds of the budget already used")
    parser.add_argument("--command", default="", help="what to write as the command of the rows")
    parser.add_argument("--no-resume", action="store_true")
    args = parser.parse_args(argv)
    device = args.device if args.device == "cpu" else f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    families = tuple(args.family or GROUP_FAMILIES)
    with one_rank(device):
        if device != "cpu":
            torch_module().cuda.set_device(device)  # before NCCL chooses one
        group = open_group(device)
        session = open_session(device, args.suite, args.seed, group)
        folder = args.out / session.env.slug
        if args.command:
            session = replace(session, env=replace(session.env, command=args.command))
        elif group.rank == 0:
            folder.mkdir(parents=True, exist_ok=True)
            write_environment(folder / "environment.json", session.env, args.suite, families, args.seed)

        def say(line: str) -> None:
            if group.rank == 0:
                print(line, flush=True)

        usable = run(
            session,
            args.suite,
            plan(args.suite, device, families, group.ranks),
            folder / "rows.csv",
            first=args.first,
            late_s=args.late,
            resume=not args.no_resume,
            say=say,
        )
    if not usable:
        sys.stdout.flush()
        os._exit(LOST)  # a broken group may hang in its own clean-up
    distributed().destroy_process_group()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
