"""2,000 cases while a worker and the client are killed.

    python -m benchmarks.study_survives [loky|dask] [CASES] [FILE]

dask: a scheduler and two worker processes are started here, one worker is killed with SIGKILL at a quarter of the
cases. loky: a process of the pool is. The client kills itself at half of them and is started again. Every case must
have one row, no row may differ from what a plain loop says (a sample of 100 is recomputed). FILE: the figures as JSON.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

from benchmarks.figures import Figures
from planner.cli.sweep_case import run_simulations
from planner.question.case import OPTIONS
from planner.study.pools import on_dask, on_this_machine
from planner.study.spec import Study, resolved, study_of
from planner.study.store import writing
from planner.study.work import Pool, digests_of, run_study

SAMPLE = 100


def study(cases: int) -> Study:
    grid = {"ep": [2, 4, 8, 16], "tp": [1, 2], "micro_batch": [1, 2], "gpus": [32, 64, 128, 256]}
    batches = [1024 + 256 * i for i in range(-(-cases // 64))]
    data = {
        "base": {"model": "Qwen3-30B-A3B", "cluster": "dgx-h100", "recompute": "full"},
        "grid": grid | {"global_batch": batches},
    }
    whole = study_of(data, OPTIONS, where="benchmark", folder=Path())
    return Study(name="survives", verb="simulate", cases=whole.cases[:cases], varied=whole.varied, folder=Path())


def client(folder: Path, how: str, cases: int, victim: int, dies: bool) -> None:
    """The study; at a quarter the victim is killed, at half this process kills itself."""
    killed = False

    def tell(done: int, total: int, failed: int, left_s: float | None) -> None:
        nonlocal killed
        if dies and not killed and done >= total // 4:
            killed = True
            pid = victim or _child()
            print(f"killing worker {pid} at {done} of {total}", flush=True)
            os.kill(pid, signal.SIGKILL)
        if dies and done >= total // 2:
            print(f"killing the client at {done} of {total}", flush=True)
            os.kill(os.getpid(), signal.SIGKILL)

    address = (folder / "address").read_text() if how == "dask" else ""
    pool: Pool = partial(on_dask, address=address) if how == "dask" else partial(on_this_machine, jobs=2)
    with writing(folder / "study.db") as store:
        outcome = run_study(study(cases), store, run_simulations, pool, progress=tell)
    print(f"asked {outcome.asked}, status {outcome.status}, missing {outcome.missing}", flush=True)


def _child() -> int:
    """A worker of the pool: a child of this process that is no helper of it."""
    for entry in Path("/proc").iterdir():
        try:
            fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
            words = (entry / "cmdline").read_bytes()
        except (OSError, IndexError):
            continue
        if entry.name.isdecimal() and int(fields[1]) == os.getpid() and b"popen_loky" in words:
            return int(entry.name)
    raise RuntimeError("no worker found")


def main(how: str, cases: int, file: Path | None) -> None:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        started: list[subprocess.Popen[bytes]] = []
        victim = 0
        log = (folder / "dask.log").open("w")
        try:
            if how == "dask":
                address = "tcp://127.0.0.1:18786"
                (folder / "address").write_text(address)
                run = [sys.executable, "-m", "distributed.cli.dask_scheduler", "--no-dashboard", "--host", "127.0.0.1"]
                started.append(subprocess.Popen([*run, "--port", "18786"], stdout=log, stderr=log))
                work = [sys.executable, "-m", "distributed.cli.dask_worker", address, "--no-nanny", "--no-dashboard"]
                work += ["--nthreads", "1", "--local-directory", str(folder)]
                started += [subprocess.Popen(work, stdout=log, stderr=log) for _ in range(2)]
                victim = started[-1].pid
            begin = time.monotonic()
            own = [sys.executable, "-m", "benchmarks.study_survives", how, str(cases), str(folder), str(victim)]
            first = subprocess.run([*own, "dies"])
            assert first.returncode == -signal.SIGKILL, first
            second = subprocess.run([*own, "lives"])
            assert second.returncode == 0, second
            took = time.monotonic() - begin
        finally:
            for process in started:
                process.terminate()
            log.close()
        asked = study(cases)
        by_digest = digests_of(asked)
        with writing(folder / "study.db") as store:
            rows = store.rows(by_digest)
            assert len(by_digest) == cases == len(rows), (cases, len(rows))
            assert store.differences() == 0
        some = list(by_digest.items())[:: max(1, cases // SAMPLE)]
        again = run_simulations(tuple((digest, resolved(case, asked.folder)) for digest, case in some))
        wrong = [r.digest for r in again if (r.status, r.text()) != (rows[r.digest].status, rows[r.digest].text())]
        assert not wrong, wrong
        figures = Figures()
        pool = "a Dask scheduler with two worker processes" if how == "dask" else "two processes of this machine"
        figures.add("cases, each with one row at the end", cases, note=pool)
        figures.add("workers killed with SIGKILL, clients killed and restarted", "1, 1")
        figures.add("cases lost, with two different results", "0, 0")
        figures.add("rows computed again in a plain loop, that differ", f"{len(again)}, 0")
        figures.add("from start to end, both clients", took, "s")
        figures.write(file)


if __name__ == "__main__":
    words = sys.argv[1:]
    if len(words) == 5:
        client(Path(words[2]), words[0], int(words[1]), int(words[3]), words[4] == "dies")
    else:
        main(
            words[0] if words else "loky", int(words[1]) if len(words) > 1 else 2000,
            Path(words[2]) if len(words) > 2 else None,
        )  # fmt: skip
