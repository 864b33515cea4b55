"""`measure`: run the harness on a device and leave rows.csv and environment.json in a folder of its own.

Also a program: `python -m calibration.measure --device cuda --suite full --out DIR` needs Python, torch and
numpy only, so that a GPU without this package's other dependencies can be measured from a checkout.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

from calibration.harness import attention, compute, grouped, launch, memory_ops, moe_block
from calibration.harness.environment import Environment, Monitor, environment
from calibration.harness.points import Bench, Point, Suite, torch_module
from calibration.harness.rows import OUT_OF_TIME, RowWriter, key, point_row, read_rows
from calibration.harness.runner import DeviceLost, run_point
from calibration.harness.timing import Patience, Timer
from hwprofiles.errors import UserError

Progress = Callable[[int, int, str], None]  # points done, points in all, what is being measured

# Safe families first: a kernel that takes the device down must not cost the rows of the others.
FAMILIES: dict[str, ModuleType] = {
    module.FAMILY: module for module in (launch, compute, attention, memory_ops, grouped, moe_block)
}
# Wall seconds per family; what one leaves over goes to the next. Sums: quick 205 s, full 490 s.
BUDGET_S: dict[str, dict[str, float]] = {
    "tiny": dict.fromkeys(FAMILIES, 3.0),
    "quick": {"launch": 10, "gemm": 60, "attention": 40, "memory": 30, "grouped_gemm": 40, "moe_block": 25},
    "full": {"launch": 10, "gemm": 160, "attention": 90, "memory": 60, "grouped_gemm": 100, "moe_block": 70},
}
PATIENCE = {
    "tiny": Patience(target_s=0.0, min_repeats=3, max_repeats=3, warmup=1, point_s=0.5),
    "quick": Patience(target_s=0.02, max_repeats=100, point_s=1.0),
    "full": Patience(),
}


def measure(
    device: str,
    out: Path,
    *,
    suite: Suite = "quick",
    families: Iterable[str] | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    resume: bool = True,
) -> Path:
    """Measure the kernels of `device` ("cuda", "cuda:1", "cpu"); returns OUT/<device-slug>.

    Rows are appended to rows.csv as they are made. With `resume`, points already there with the same
    device, driver, torch and CUDA are not measured again, except those that lacked time.
    Raises UserError for a bad argument, missing torch or an unreachable device, and when the device
    stops answering: the rows so far stand, and the next call goes on behind the point that did it.
    """
    chosen = _families(families)
    name = _device(device, suite)
    monitor = Monitor(name)
    try:
        env = environment(name, monitor)
        bench = Bench(device=name, timer=Timer(name, PATIENCE[suite], monitor.sample), seed=seed)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device {name!r} cannot be used: {error}; try --device cpu", where="measure") from error
    folder = Path(out) / env.slug
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "rows.csv"
    try:
        old = read_rows(path)
    except ValueError as error:
        raise UserError(f"{error}; give another --out folder or move the file away", where="measure") from error
    _write_environment(folder / "environment.json", env, suite, chosen, seed)
    try:
        _run(path, chosen, suite, bench, monitor, env, {key(r): r["status"] for r in old} if resume else {}, progress)
    except DeviceLost as error:
        raise UserError(
            f"{error}; the rows so far stand, run the same command again to go on", where="measure"
        ) from error
    return folder


def _run(
    path: Path,
    chosen: tuple[str, ...],
    suite: Suite,
    bench: Bench,
    monitor: Monitor,
    env: Environment,
    done: dict[tuple[str, ...], str],
    progress: Progress | None,
) -> None:
    described = env.as_dict()
    plan: dict[str, list[Point]] = {name: FAMILIES[name].points(suite, bench.device) for name in chosen}
    total, count = sum(map(len, plan.values())), 0
    deadline = time.monotonic()
    with RowWriter(path) as writer:
        for family, points in plan.items():
            deadline += BUDGET_S[suite][family]
            for point in points:
                count += 1
                row = point_row(point, described)
                status = done.get(key(row))
                if status is not None and not status.startswith(OUT_OF_TIME):
                    continue
                if time.monotonic() > deadline:
                    if status is None:
                        writer.write(row | {"status": f"{OUT_OF_TIME} of {BUDGET_S[suite][family]:g} s for {family}"})
                    continue
                if progress is not None:
                    progress(count, total, point.label)
                row, usable = run_point(point, bench, monitor, described)
                writer.write(row)
                if not usable:
                    raise DeviceLost(f"{bench.device} stopped answering at {point.label} ({row['status']})")


def _families(families: Iterable[str] | None) -> tuple[str, ...]:
    if families is None:
        return tuple(FAMILIES)
    wanted = tuple(families)
    unknown = [name for name in wanted if name not in FAMILIES]
    if unknown or not wanted:
        text = ", ".join(map(repr, unknown)) or "an empty list"
        raise UserError(f"no family {text}; choose from {', '.join(FAMILIES)}", where="families")
    return tuple(name for name in FAMILIES if name in wanted)


def _device(device: str, suite: str) -> str:
    problems = []
    if suite not in get_args(Suite):
        problems.append(f"suite {suite!r} is not one of {', '.join(get_args(Suite))}")
    if device != "cpu" and device != "cuda" and not (device.startswith("cuda:") and device[5:].isdigit()):
        problems.append(f"device {device!r} is not cpu, cuda or cuda:N")
    if importlib.util.find_spec("torch") is None:
        problems.append("torch is not installed; install the extra: pip install 'moecast[calibrate]'")
    if problems:
        raise UserError(problems, where="measure")
    if device == "cpu":
        return device
    torch = torch_module()
    number = int(device[5:]) if ":" in device else 0
    if not torch.cuda.is_available() or number >= torch.cuda.device_count():
        raise UserError(
            f"no CUDA device {number} here (torch {torch.__version__} sees {torch.cuda.device_count()}); "
            "install a CUDA build of torch and check nvidia-smi, or use --device cpu",
            where="measure",
        )
    return f"cuda:{number}"


def _write_environment(path: Path, env: Environment, suite: str, families: tuple[str, ...], seed: int) -> None:
    """The latest environment, and one line per run that wrote to the folder."""
    runs: list[dict[str, Any]] = []
    if path.exists():
        try:
            runs = list(json.loads(path.read_text(encoding="utf-8"))["runs"])
        except (ValueError, KeyError, TypeError):
            runs = []
    this = {"date": env.date, "suite": suite, "families": list(families), "seed": seed, "command": env.command}
    this |= {"driver": env.driver, "torch": env.torch, "cuda": env.cuda}
    text = json.dumps({**env.as_dict(), "runs": [*runs, this]}, indent=2, sort_keys=True)
    path.write_text(text + "\n", encoding="utf-8")


def main(argv: list[str] | None = None) -> int:
    """The stand-alone program. Exit code 0, or 2 with a message."""
    parser = argparse.ArgumentParser(prog="python -m calibration.measure", description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda", help="cuda, cuda:N or cpu")
    parser.add_argument("--suite", default="quick", choices=get_args(Suite))
    parser.add_argument("--out", type=Path, required=True, help="folder; rows go to OUT/<device>/rows.csv")
    parser.add_argument("--family", action="append", help=f"only this family (repeatable): {', '.join(FAMILIES)}")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-resume", action="store_true", help="measure every point again")
    args = parser.parse_args(argv)
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
            args.out,
            suite=args.suite,
            families=args.family,
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
