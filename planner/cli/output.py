"""Writing results: JSON, files, progress, and what `--strict` refuses."""

from __future__ import annotations

import gzip
import json
import math
import os
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hwprofiles.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console

    from sim.report import Report

STDOUT = "-"
PATIENCE_S = 0.7  # work that ends sooner shows no progress
WIDE = 150
INTERRUPTED = 130  # exit code after Ctrl-C, as shells count it
UNREAD = 141  # exit code where the reader of stdout has gone, as shells count it
LINE_S = 20.0  # between lines of progress where no terminal shows a bar


def console(*, stderr: bool = False) -> Console:
    """A rich console; wide when nobody looks, so that tables in files are not folded."""
    from rich.console import Console

    class Piped(Console):
        """Leaves it to the command what to do where nobody reads on."""

        def on_broken_pipe(self) -> None:
            raise BrokenPipeError

    out = Piped(stderr=stderr, highlight=False, soft_wrap=False)
    return out if out.is_terminal else Piped(stderr=stderr, highlight=False, width=WIDE)


def nobody_reads() -> None:
    """Let nothing that is still to be written fail, once the reader of stdout is gone (`| head`)."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


def plain(value: Any) -> Any:
    """Numbers, texts, lists and objects only; numbers JSON does not know become null."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, bool) or value is None or isinstance(value, int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if hasattr(value, "item"):
        return plain(value.item())
    return str(value)


def json_text(data: Any) -> str:
    """Strict JSON, two spaces, a newline at the end."""
    return json.dumps(plain(data), indent=2, allow_nan=False) + "\n"


def write_text(target: str, text: str, option: str) -> None:
    """Write to a file, or to the terminal for `-`. Raises UserError when that is not possible."""
    if target == STDOUT:
        sys.stdout.write(text)
        return
    try:
        Path(target).write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write {target}: {error.strerror}; give a writable path", where=option) from None


def write_bytes(target: str, data: bytes, option: str) -> None:
    """Write to a file. Raises UserError when that is not possible."""
    try:
        Path(target).write_bytes(data)
    except OSError as error:
        raise UserError(f"cannot write {target}: {error.strerror}; give a writable path", where=option) from None


def check_targets(**targets: str | None) -> None:
    """Refuse paths that cannot be written before the work starts, not after it."""
    problems = []
    for key, target in targets.items():
        name = key.replace("_", "-")
        if target is None or (target == STDOUT and name == "json"):
            continue
        path = Path(target)
        if target == STDOUT:
            problems.append(f"--{name} - is not possible; only --json writes to the terminal, give a file")
        elif path.is_dir():
            problems.append(f"--{name} {target} is a folder; give a file name in it")
        elif not path.resolve().parent.is_dir():
            problems.append(f"--{name} {target}: no folder {path.parent}; create it first")
    if problems:
        raise UserError(problems, where="output")


def weak_points(report: Report) -> list[str]:
    """What --strict refuses: warnings, and numbers that rest on extrapolation or assumption."""
    weak = [line for line in report.provenance if "extrapolated" in line.lower() or "assumed" in line.lower()]
    return list(dict.fromkeys([*weak, *report.warnings]))


def refuse_weak(reports: Iterable[Report]) -> None:
    """Raise UserError for the first report that rests on extrapolation, assumption or a warning."""
    for report in reports:
        weak = weak_points(report)
        if weak:
            remedy = "; measure it (`moecast calibrate measure`) or leave out --strict"
            raise UserError([line + remedy for line in weak], where=f"--strict, {report.plan.label()}")


def write_pictures(
    report: Report,
    trace: str | None,
    page: str | None,
    *,
    records: Sequence[Mapping[str, Any]] = (),
    search: Mapping[str, Any] | None = None,
    lanes: str | None = None,
) -> None:
    """Write the timeline, the page and the timelines per lane where they were asked for."""
    if lanes:
        from dashboards.trace_lanes import write_lane_traces

        folder, compress = lanes.removesuffix(":gz"), lanes.endswith(":gz")
        try:
            write_lane_traces(report, folder, compress=compress)
        except OSError as error:
            raise UserError(f"cannot write {folder}: {error.strerror}; give a folder", where="--trace-lanes") from None
    if trace:
        from dashboards.trace_export import trace_json

        text = trace_json(report)
        if trace.endswith(".gz"):
            write_bytes(trace, gzip.compress(text.encode(), mtime=0), "--trace")
        else:
            write_text(trace, text, "--trace")
    if page:
        from dashboards.html_report import report_html

        write_text(page, report_html(report, records=records, search=search), "--report")


def say_written(**targets: str | None) -> None:
    """Name the files that were written, on stderr."""
    for name, target in targets.items():
        if target and target != STDOUT:
            print(f"wrote {target} ({name.replace('_', ' ')})", file=sys.stderr)


class Progress:
    """A bar on the terminal's error stream that only appears when the work takes a while; lines where it is none."""

    def __init__(self, text: str, every_s: float | None = None) -> None:
        """every_s: between lines where no terminal shows a bar; None: LINE_S."""
        self._every_s = LINE_S if every_s is None else every_s
        self._watched, self._stream = sys.stderr.isatty(), sys.stderr
        self._text = text
        self._state: tuple[str, float, float | None] = (text, 0.0, None)
        self._bar: Any = None
        self._task: Any = None
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._wait, daemon=True)

    def _wait(self) -> None:
        if self._watched:
            if not self._over.wait(PATIENCE_S):
                self._show()
            return
        while not self._over.wait(self._every_s):
            text, done, total = self._state
            print(text if total is None else f"{text}: {done:,.0f} of {total:,.0f}", file=self._stream, flush=True)

    def _show(self) -> None:
        from rich.progress import BarColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as Bar

        with self._lock:
            if self._over.is_set():
                return
            text, done, total = self._state
            self._bar = Bar(
                SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(),
                console=console(stderr=True), transient=True,
            )  # fmt: skip
            self._task = self._bar.add_task(text, total=total, completed=done)
            self._bar.start()

    def update(self, text: str, done: float = 0, total: float | None = None) -> None:
        """Say what is going on: `done` of `total` (None = unknown)."""
        with self._lock:
            self._state = (text, done, total)
            if self._bar is not None:
                self._bar.update(self._task, description=text, completed=done, total=total)

    def start(self) -> None:
        """Start waiting for the moment to appear."""
        self._thread.start()

    def stop(self) -> None:
        """Remove the bar."""
        self._over.set()
        with self._lock:
            if self._bar is not None:
                self._bar.stop()


@contextmanager
def progress(text: str, *, every_s: float | None = None) -> Iterator[Progress]:
    """Progress of a block of work: a bar on a terminal, else a line now and then of work that takes long."""
    bar = Progress(text, every_s)
    bar.start()
    try:
        yield bar
    finally:
        bar.stop()
