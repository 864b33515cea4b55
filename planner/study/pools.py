"""Where the cases of a study run: processes of this machine (loky), or the workers of a Dask cluster.

Both give back batches of rows as they are done and lose none when a worker dies: what was in flight is asked again,
case by case, until the case that kills its worker is known.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, CancelledError, wait
from typing import Any

from hwprofiles.errors import UserError
from planner.study.store import FAILED, Row

Batch = tuple[tuple[str, Mapping[str, Any]], ...]  # (digest, case) of each
Work = Callable[[Batch], tuple[Row, ...]]

AHEAD = 2  # batches in flight per worker: one computed, one waiting
MAX_DEATHS = 2  # of a worker that runs one case alone, until the case is given up
CONNECT_S = 10  # how long a scheduler may take to answer
WATCH_S = 1.0
NO_WORKERS_S = 120.0  # a scheduler without any worker is waited for so long
IDLE_S = 20  # a worker without work ends: also those of a client that was killed
FILTERS, NO_WORD_OF_SEMAPHORES = "PYTHONWARNINGS", "ignore:resource_tracker:UserWarning"
ONE_THREAD = {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}


def died(digest: str) -> Row:
    """The row of a case that ended its worker each time."""
    said = f"the worker process died {MAX_DEATHS} times on this case alone (out of memory, or killed)"
    return Row(digest=digest, status=FAILED, error=said, result={})


def end_with(client: int) -> None:
    """End this worker soon after its client was killed: it might wait for ever to hand over a result."""

    def watch() -> None:
        while os.getppid() == client:
            time.sleep(WATCH_S)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def quiet_tracker() -> None:
    """Start loky's tracker of semaphores, and have it clean up after a killed client without a word.

    It outlives the client to do just that; its warning of what "leaked" reads like a fault of the study. The process
    takes its filters from the environment it is started in, which is as before afterwards.
    """
    from joblib.externals.loky.backend.resource_tracker import ensure_running

    before = os.environ.get(FILTERS)
    os.environ[FILTERS] = ",".join(filter(None, (before, NO_WORD_OF_SEMAPHORES)))
    try:
        ensure_running()
    finally:
        if before is None:
            del os.environ[FILTERS]
        else:
            os.environ[FILTERS] = before


def on_this_machine(work: Work, batches: Sequence[Batch], jobs: int) -> Iterator[tuple[Row, ...]]:
    """Rows as they are done, from `jobs` processes. The order depends on the clock, the rows do not."""
    from joblib.externals.loky import get_reusable_executor
    from joblib.externals.loky.process_executor import BrokenProcessPool

    quiet_tracker()
    todo, alone = deque(batches), deque[Batch]()
    deaths: dict[str, int] = {}
    while todo or alone:
        solo = not todo
        source, width = (alone, 1) if solo else (todo, AHEAD * jobs)
        executor = get_reusable_executor(
            max_workers=jobs, timeout=IDLE_S, env=ONE_THREAD, initializer=end_with, initargs=(os.getpid(),)
        )
        flying: dict[Any, Batch] = {}
        try:
            while source or flying:
                while source and len(flying) < width:
                    batch = source.popleft()
                    try:
                        flying[executor.submit(work, batch)] = batch
                    except BrokenProcessPool:
                        source.appendleft(batch)
                        raise
                ready, _ = wait(flying, return_when=FIRST_COMPLETED)
                for future in ready:
                    rows: tuple[Row, ...] = future.result()
                    del flying[future]
                    yield rows
        except BrokenProcessPool:
            for future, batch in flying.items():
                if future.done() and future.exception() is None:
                    yield future.result()
                    continue
                if not solo:
                    alone.extend((one,) for one in batch)
                    continue
                digest = batch[0][0]
                deaths[digest] = deaths.get(digest, 0) + 1
                if deaths[digest] >= MAX_DEATHS:
                    yield (died(digest),)
                else:
                    alone.append(batch)
        except BaseException:
            executor.shutdown(wait=False, kill_workers=True)
            raise


def _gone(address: str, error: BaseException) -> str:
    said = " ".join(str(error).split()) or type(error).__name__
    return (
        f"the scheduler at {address} has gone ({said[:100]}); every row that came back is kept: start it again, and "
        "the same command goes on from there"
    )


def on_dask(
    work: Work, batches: Sequence[Batch], address: str, patience_s: float = NO_WORKERS_S
) -> Iterator[tuple[Row, ...]]:  # fmt: skip
    """Rows as they are done, from the workers of the scheduler at `address`. Dask gives the work of a dead worker to
    another; a case that several workers died of is a row that says so. Raises UserError, also where there has been no
    worker for `patience_s`."""
    try:
        from distributed import Client, KilledWorker
        from distributed import wait as any_of
    except ImportError:
        raise UserError("Dask is not installed; pip install 'moecast[dask]'", where="--scheduler") from None
    try:
        client = Client(address, timeout=CONNECT_S)
    except (OSError, TimeoutError, ValueError) as error:
        said = f"no scheduler at {address} ({error}); give tcp://HOST:PORT of a running one"
        raise UserError(said, where="--scheduler") from None
    for name in list(logging.root.manager.loggerDict):  # what goes wrong is told below, once
        if name.partition(".")[0] == "distributed":
            logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    todo = deque(batches)
    flying: dict[Any, Batch] = {}
    worked = time.monotonic()
    try:
        while todo or flying:
            workers = len(client.nthreads())
            worked = time.monotonic() if workers else worked
            if time.monotonic() - worked > patience_s:
                raise UserError(
                    f"the scheduler at {address} has had no worker for {patience_s:g} s; every row that came back is "
                    "kept: start workers, and the same command goes on from there",
                    where="--scheduler",
                )
            while todo and len(flying) < AHEAD * max(1, workers):
                batch = todo.popleft()
                flying[client.submit(work, batch, pure=False)] = batch
            try:
                ready = any_of(list(flying), timeout=WATCH_S, return_when=FIRST_COMPLETED).done
            except TimeoutError:
                continue
            for future in ready:
                batch = flying.pop(future)
                try:
                    yield future.result()
                except KilledWorker:
                    if len(batch) == 1:
                        yield (died(batch[0][0]),)
                    todo.extend((one,) for one in batch if len(batch) > 1)
    except ImportError as error:
        said = f"a worker cannot run this program ({error}); install it there, of this release"
        raise UserError(said, where="--scheduler") from None
    except (CancelledError, OSError) as error:
        raise UserError(_gone(address, error), where="--scheduler") from None
    finally:
        client.close()  # what is in flight and wanted by no client is cancelled by the scheduler
