"""`measure`: run the harness on a device and leave rows.csv and environment.json in a folder of its own.

Also a program: `python -m calibration.measure --device cuda --suite full --out DIR` needs Python, torch and
numpy only, so that a GPU without this package's other dependencies can be measured from a checkout.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import get_args

from calibration.harness.group_worker import plan
from calibration.harness.launcher import GroupRun, run_group
from calibration.harness.points import Point, Prepared, Suite, torch_module
from calibration.harness.rows import OUT_OF_TIME, RowWriter, key, point_row, read_rows
from calibration.harness.runner import DeviceLost, run_point
from calibration.harness.session import Session, one_rank, open_session, write_environment
from calibration.harness.suites import FAMILIES, GROUP_FAMILIES, NAMES, Points, budget_s, world_sizes
from hwprofiles.errors import UserError

Progress = Callable[[int, int, str], None]  # points done, points in all, what is being measured


def measure(
    device: str,
    out: Path,
    *,
    suite: Suite = "quick",
    families: Iterable[str] | None = None,
    ranks: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    resume: bool = True,
) -> Path:
    """Measure the kernels of `device` ("cuda", "cuda:1", "cpu"); returns OUT/<device-slug>.

    Rows are appended to rows.csv as they are made. With `resume`, points already there with the same
    device, driver, torch and CUDA are not measured again, except those that lacked time. `ranks`: size of
    the group for the families over ranks (default: 2 on a CPU; 2, 4, ... all devices on CUDA; 1 leaves
    them out). A CPU is measured with one thread, as each rank of a group.
    Raises UserError for a bad argument, missing torch or an unreachable device, and when the device
    stops answering: the rows so far stand, and the next call goes on behind the point that did it.
    """
    chosen = _families(families)
    name = _device(device, suite, ranks)
    with one_rank(name):
        try:
            session = open_session(name, suite, seed)
        except (RuntimeError, AssertionError) as error:
            raise UserError(f"device {name!r} cannot be used: {error}; try --device cpu", where="measure") from error
        folder = Path(out) / session.env.slug
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "rows.csv"
        try:
            old = read_rows(path)
        except ValueError as error:
            raise UserError(f"{error}; give another --out folder or move the file away", where="measure") from error
        write_environment(folder / "environment.json", session.env, suite, chosen, seed)
        run = _Run(session, suite, path, {key(row): row["status"] for row in old} if resume else {}, progress)
        try:
            run.families({name: FAMILIES[name] for name in chosen if name in FAMILIES})
        except DeviceLost as error:
            raise UserError(
                f"{error}; the rows so far stand, run the same command again to go on", where="measure"
            ) from error
    wanted = tuple(name for name in chosen if name in GROUP_FAMILIES)
    if wanted:
        # The device is handed over: what this process still holds there would be missing there.
        run.session.bench.timer.release()
        sizes = world_sizes(name, ranks)
        if not sizes:
            run.nobody(wanted)
        for size in sizes:
            run.group(
                GroupRun(
                    device=name,
                    suite=suite,
                    out=Path(out),
                    path=path,
                    families=wanted,
                    ranks=size,
                    seed=seed,
                    resume=resume,
                    env=session.env,
                )
            )
    return folder


class _Run:
    """The rows of one call of `measure`: what is there already (`done`), and what is being added."""

    def __init__(
        self, session: Session, suite: Suite, path: Path, done: dict[tuple[str, ...], str], progress: Progress | None
    ) -> None:
        self.session, self.suite, self.path, self.done, self.progress = session, suite, path, done, progress
        self.count = self.total = 0

    def families(self, chosen: dict[str, Points]) -> None:
        """Measure the families of one rank. Raises DeviceLost."""
        bench = self.session.bench
        kind = bench.device.split(":")[0]
        planned: dict[str, list[Point]] = {name: points(self.suite, kind) for name, points in chosen.items()}
        self.total += sum(map(len, planned.values()))
        deadline, just = time.monotonic(), False  # just: the point before this one was measured now
        with RowWriter(self.path) as writer:
            for family, points in planned.items():
                allowed_s = budget_s(self.suite, kind, family)
                deadline += allowed_s
                for point in points:
                    self.count += 1
                    row = point_row(point, self.session.described)
                    status = self.done.get(key(row))
                    before, just = just, False
                    if status is not None and not status.startswith(OUT_OF_TIME):
                        continue
                    if time.monotonic() > deadline and not (point.follows and before):
                        if status is None:
                            writer.write(row | {"status": f"{OUT_OF_TIME} of {allowed_s:g} s for {family}"})
                        continue
                    just = True
                    self.say(point.label)
                    row, usable = run_point(point, bench, self.session.monitor, self.session.described)
                    writer.write(row)
                    if not usable:
                        raise DeviceLost(f"{bench.device} stopped answering at {point.label} ({row['status']})")

    def say(self, label: str) -> None:
        """Report the point that starts now."""
        if self.progress is not None:
            self.progress(self.count, self.total, label)

    def group(self, job: GroupRun) -> None:
        """Measure the families over ranks, unless all of their points are there."""
        points = plan(job.suite, job.device, job.families, job.ranks)
        self.total += len(points)
        rows = [point_row(point, self.session.described) for point in points]
        if not any(self.done.get(key(row), OUT_OF_TIME).startswith(OUT_OF_TIME) for row in rows):
            self.count += len(points)
            return

        def on_point(label: str) -> None:
            self.count += 1
            self.say(f"{job.ranks} ranks: {label}")

        run_group(job, on_point)

    def nobody(self, families: tuple[str, ...]) -> None:
        """One row for each family that one rank alone cannot measure."""
        why = (
            "a group needs two ranks: give --ranks 2 where there are as many devices, or start group_worker by torchrun"
        )
        with RowWriter(self.path) as writer:
            for family in families:
                point = Point(family=family, op=family, pass_="", sizes={"ranks": 1}, prepare=lambda bench: Prepared())
                row = point_row(point, self.session.described)
                if key(row) not in self.done:
                    writer.write(row | {"status": f"skipped: {why}"})


def _families(families: Iterable[str] | None) -> tuple[str, ...]:
    if families is None:
        return NAMES
    wanted = tuple(families)
    unknown = [name for name in wanted if name not in NAMES]
    if unknown or not wanted:
        text = ", ".join(map(repr, unknown)) or "an empty list"
        raise UserError(f"no family {text}; choose from {', '.join(NAMES)}", where="families")
    return tuple(name for name in NAMES if name in wanted)


def _device(device: str, suite: str, ranks: int | None) -> str:
    problems = []
    if suite not in get_args(Suite):
        problems.append(f"suite {suite!r} is not one of {', '.join(get_args(Suite))}")
    if device != "cpu" and device != "cuda" and not (device.startswith("cuda:") and device[5:].isdigit()):
        problems.append(f"device {device!r} is not cpu, cuda or cuda:N")
    if ranks is not None and ranks < 1:
        problems.append(f"ranks {ranks} is below 1; give the number of ranks of a group, or 1 for none")
    if importlib.util.find_spec("torch") is None:
        problems.append("torch is not installed; install the extra: pip install 'moecast[calibrate]'")
    if problems:
        raise UserError(problems, where="measure")
    if device == "cpu":
        return device
    torch = torch_module()
    number = int(device[5:]) if ":" in device else 0
    if ranks is not None and torch.cuda.is_available() and ranks > torch.cuda.device_count():
        raise UserError(
            f"{ranks} ranks need as many devices, and there are {torch.cuda.device_count()}; "
            "start calibration.harness.group_worker by torchrun to use several machines",
            where="ranks",
        )
    if not torch.cuda.is_available() or number >= torch.cuda.device_count():
        raise UserError(
            f"no CUDA device {number} here (torch {torch.__version__} sees {torch.cuda.device_count()}); "
            "install a CUDA build of torch and check nvidia-smi, or use --device cpu",
            where="measure",
        )
    return f"cuda:{number}"


def main(argv: list[str] | None = None) -> int:
    """The stand-alone program. Exit code 0, or 2 with a message."""
    parser = argparse.ArgumentParser(prog="python -m calibration.measure", description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda", help="cuda, cuda:N or cpu")
    parser.add_argument("--suite", default="quick", choices=get_args(Suite))
    parser.add_argument("--out", required=True, help="folder; rows go to OUT/<device>/rows.csv")
    parser.add_argument("--family", action="append", help=f"only this family (repeatable): {', '.join(NAMES)}")
    parser.add_argument("--ranks", type=int, help="ranks of the group (default: 2 on a CPU, all devices on CUDA)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-resume", action="store_true", help="measure every point again")
    args = parser.parse_args(argv)
    if not args.out.strip():
        parser.error("--out is empty; give a folder to write to, such as --out measured")
    begin = time.monotonic()
    said = [0.0]

    def progress(done: int, total: int, label: str) -> None:
        if time.monotonic() - said[0] < 2.0 and done < total:
            return
        said[0] = time.monotonic()
        print(f"[{time.monotonic() - begin:6.1f} s] {done}/{total} {label}", file=sys.stderr, flush=True)

    try:
        folder = measure(
            args.device,
            Path(args.out),
            suite=args.suite,
            families=args.family,
            ranks=args.ranks,
            seed=args.seed,
            progress=progress,
            resume=not args.no_resume,
        )
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(overview(folder / "rows.csv"))
    return 0


def overview(path: Path) -> str:
    """Rows per family: measured, skipped, failed; and every failure in words."""
    rows = read_rows(path)
    lines = [str(path)]
    for family in dict.fromkeys(row["family"] for row in rows):
        kinds = [row["status"].split(":")[0] for row in rows if row["family"] == family]
        counts = ", ".join(f"{kinds.count(kind)} {kind}" for kind in ("ok", "skipped", "failed"))
        lines.append(f"  {family}: {counts}")
    lines += [f"  {r['op']} {r['pass']} {r['sizes']}: {r['status']}" for r in rows if r["status"].startswith("failed")]
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main())
