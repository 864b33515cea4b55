"""The measuring harness on a CPU: right results, rows that survive interruption, errors that become rows."""

from __future__ import annotations

import csv
import importlib
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch")
torch.set_num_threads(1)  # tiny kernels; threads that wait for each other only cost time

from calibration import measure as measuring  # noqa: E402
from calibration.harness import suites  # noqa: E402
from calibration.harness.environment import Monitor, environment  # noqa: E402
from calibration.harness.points import Bench, Point, Prepared, Skip  # noqa: E402
from calibration.harness.rows import COLUMNS, OUT_OF_TIME, RowWriter, key, point_row, read_rows  # noqa: E402
from calibration.harness.runner import run_point  # noqa: E402
from calibration.harness.timing import Patience, Timer, percentile, summary  # noqa: E402
from hwprofiles.errors import UserError  # noqa: E402

ROOT = Path(__file__).parents[2]
FEW = ("launch", "copies", "grouped_gemm", "moe_block", "train_step", "sustained")


@pytest.fixture(scope="module")
def bench() -> Bench:
    return Bench(device="cpu", timer=Timer("cpu", suites.PATIENCE["tiny"]), seed=3)


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("measured")
    return measuring.measure("cpu", out, suite="tiny", families=FEW) / "rows.csv"


# ---------------------------------------------------------------- rows and resuming


def test_tiny_suite_end_to_end(measured: Path) -> None:
    with measured.open(newline="") as lines:
        raw = list(csv.DictReader(lines))
    assert tuple(raw[0]) == COLUMNS
    assert {row["family"] for row in raw} == set(FEW)
    assert [row["status"] for row in raw if row["status"].startswith("failed")] == []
    for row in raw:
        if row["status"] == "ok":
            assert 0 < float(row["p10_s"]) <= float(row["median_s"]) <= float(row["p90_s"])
            assert int(row["repeats"]) >= 3
            assert row["device"] and row["torch"] == torch.__version__ and row["date"]
        else:  # graphs and the fp8 grouped kernel exist on CUDA only
            assert row["status"].startswith("skipped: ")
            assert row["op"].startswith(("graph_", "copy_")) or row["dtype"] == "fp8_row"
            assert row["median_s"] == ""
        if row["op"] in ("moe_block", "train_step"):
            assert float(row["peak_bytes"]) > 0 and json.loads(row["observed"])["cpu_s"] > 0
    kinds = {(row["op"], row["pass"]) for row in raw if row["status"] == "ok"}
    assert {("moe_block", "forward"), ("moe_block", "backward"), ("grouped_gemm", "wgrad")} <= kinds
    assert (measured.parent / "environment.json").exists()


def test_resume_measures_nothing_twice_and_mends_a_torn_line(measured: Path, tmp_path: Path) -> None:
    folder = tmp_path / measured.parent.name
    folder.mkdir()
    copy = folder / "rows.csv"
    whole = measured.read_bytes()
    copy.write_bytes(whole)
    measuring.measure("cpu", tmp_path, suite="tiny", families=FEW)
    assert copy.read_bytes() == whole
    lines = whole.splitlines(keepends=True)
    block = next(i for i, line in enumerate(lines) if b"moe_block_loop" in line)
    copy.write_bytes(b"".join(lines[: block + 1])[:-25])  # killed while writing that row
    before = read_rows(copy)
    labels: list[str] = []
    measuring.measure("cpu", tmp_path, suite="tiny", families=FEW, progress=lambda i, n, what: labels.append(what))
    assert labels[0].startswith("moe_block_loop") and len(labels) == len(lines) - block
    after = read_rows(copy)
    assert [key(row) for row in after] == [key(row) for row in read_rows(measured)]
    assert after[: len(before)] == before and len(after) > len(before)


def test_without_resume_the_last_row_counts(tmp_path: Path) -> None:
    for _ in range(2):
        path = measuring.measure("cpu", tmp_path, suite="tiny", families=["launch"], resume=False) / "rows.csv"
    with path.open(newline="") as lines:
        raw = list(csv.DictReader(lines))
    assert len(raw) == 12
    assert read_rows(path) == raw[6:]


def test_points_that_lacked_time_say_so_and_are_measured_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(measuring, "budget_s", lambda suite, device, family: -1.0)
        for _ in range(2):  # saying it once is enough
            path = measuring.measure("cpu", tmp_path, suite="tiny", families=["launch"]) / "rows.csv"
    assert [row["status"].startswith(OUT_OF_TIME) for row in read_rows(path)] == [True] * 6
    assert len(path.read_text().splitlines()) == 7
    measuring.measure("cpu", tmp_path, suite="tiny", families=["launch"])
    assert sum(row["status"] == "ok" for row in read_rows(path)) == 4


def test_csv_round_trip(tmp_path: Path) -> None:
    env = environment("cpu", Monitor("cpu")).as_dict() | {"command": 'odd, "quoted" command', "device": "x, y"}
    point = Point(family="f", op="o", pass_="forward", sizes={"b": 1, "a": "t,u"}, prepare=lambda b: Prepared())
    row = point_row(point, env) | {"status": "skipped: a, b"}
    with RowWriter(tmp_path / "rows.csv") as writer:
        writer.write(row)
    assert read_rows(tmp_path / "rows.csv") == [row]
    assert row["sizes"] == '{"a":"t,u","b":1}'
    (tmp_path / "rows.csv").write_text("family,op\nx,y\n")
    with pytest.raises(ValueError, match="other columns"):
        read_rows(tmp_path / "rows.csv")


# ---------------------------------------------------------------- errors become rows


def _raise(error: Exception) -> Any:
    raise error


@pytest.mark.parametrize(
    ("prepared", "status"),
    [
        (lambda: Prepared(run=lambda: None, check=lambda: 0.5), "failed: relative error 0.5"),
        (lambda: Prepared(run=lambda: None, check=lambda: float("nan")), "failed: relative error nan"),
        (lambda: _raise(Skip("no such unit")), "skipped: no such unit"),
        (lambda: _raise(torch.OutOfMemoryError("CUDA out of memory. Tried")), "skipped: out of memory"),
        (lambda: _raise(RuntimeError("no kernel\nlong tale")), "skipped: not supported here: no kernel"),
        (lambda: _raise(TypeError("our mistake")), "failed: TypeError: our mistake"),
        (lambda: Prepared(run=lambda: None, check=lambda: _raise(MemoryError())), "ok"),
    ],
)
def test_what_goes_wrong_is_a_row(bench: Bench, prepared: Any, status: str) -> None:
    point = Point(family="f", op="o", pass_="forward", prepare=lambda bench: prepared())
    row, usable = run_point(point, bench, Monitor("cpu"), environment("cpu", Monitor("cpu")).as_dict())
    assert row["status"].startswith(status)
    assert (row["median_s"] == "") == (status != "ok")
    assert usable


def test_bad_arguments_name_every_problem(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError) as problem:
        measuring.measure("tpu", tmp_path, suite="huge", ranks=0)  # type: ignore[arg-type]
    assert len(problem.value.problems) == 3
    with pytest.raises(UserError, match="no family 'gem'"):
        measuring.measure("cpu", tmp_path, suite="tiny", families=["gem"])
    assert measuring.main(["--device", "cuda:4096", "--out", str(tmp_path)]) == 2
    assert "--device cpu" in capsys.readouterr().err
    with pytest.raises(SystemExit) as left:
        measuring.main(["--device", "cpu", "--out", ""])
    assert left.value.code == 2 and "--out is empty" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_runs_with_torch_and_numpy_alone() -> None:
    code = (
        "import sys\n"
        "for name in ('pydantic', 'typer', 'simpy', 'pandas', 'scipy', 'networkx', 'rich', 'plotly', 'pulp'):\n"
        "    sys.modules[name] = None\n"
        "import calibration.measure\n"
        "assert 'torch' not in sys.modules, 'torch must be imported late'\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# ---------------------------------------------------------------- timing


@given(st.lists(st.floats(0, 1e3), min_size=1, max_size=30), st.floats(0, 1))
def test_percentile_is_numpys(values: list[float], q: float) -> None:
    assert percentile(values, q) == pytest.approx(float(np.quantile(values, q)), abs=1e-9)


def test_summary_orders_its_numbers() -> None:
    timing_ = summary([3.0, 1.0, 2.0, 10.0])
    assert (timing_.median_s, timing_.repeats) == (2.5, 4)
    assert timing_.p10_s < timing_.median_s < timing_.p90_s


class FakeCuda:
    """A device with a clock: work is queued, events read the clock, nothing else takes time."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.log: list[str] = []

    def Event(self, enable_timing: bool) -> Any:
        event = SimpleNamespace(at_s=0.0, synchronize=lambda: None)
        event.record = lambda: setattr(event, "at_s", self.now_s)
        event.elapsed_time = lambda other: (other.at_s - event.at_s) * 1e3
        return event

    def work(self, seconds: float, name: str) -> None:
        self.now_s += seconds
        self.log.append(name)

    def _sleep(self, cycles: int) -> None:
        self.work(cycles / 2e9, "hold")

    def module(self) -> Any:
        cuda = SimpleNamespace(
            Event=self.Event,
            _sleep=self._sleep,
            synchronize=lambda device=None: None,
            set_device=lambda index: None,
            get_device_properties=lambda device: SimpleNamespace(L2_cache_size=1 << 20),
        )
        buffer = SimpleNamespace(zero_=lambda: self.work(1e-4, "flush"))
        return SimpleNamespace(
            cuda=cuda, device=lambda name: SimpleNamespace(index=0), int8=None, empty=lambda *a, **k: buffer
        )


def test_cuda_timing_counts_neither_flush_nor_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeCuda()
    monkeypatch.setattr(importlib, "import_module", lambda name: fake.module())
    sampled: list[int] = []
    timer = Timer("cuda:0", Patience(target_s=1.0, spread=0.0, max_repeats=40), lambda: sampled.append(1))
    fake.log.clear()
    kernel_s = iter([1e-3 + 1e-5 * (i % 3) for i in range(100)])
    result = timer.time(lambda: fake.work(next(kernel_s), "run"))
    assert result.median_s == pytest.approx(1.01e-3, rel=1e-6)
    assert result.repeats == 40 and len(sampled) == 1
    timed = fake.log[4:]  # three warm-ups and the call that measures host time
    assert timed == ["flush", "hold", "run"] * 40
    fake.log.clear()
    timer.time(lambda: fake.work(1e-3, "run"), hide_launch=False)
    assert "hold" not in fake.log


def test_cuda_parts_and_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeCuda()
    monkeypatch.setattr(importlib, "import_module", lambda name: fake.module())
    timer = Timer("cuda:0", Patience(target_s=0.01, min_repeats=4))

    def step(mark: Any) -> None:
        fake.work(0.3, "forward")
        mark()
        fake.work(0.5, "backward")
        mark()

    fake.log.clear()
    rows = timer.parts(step, steps=4, limit_s=60.0)
    assert [[round(value, 9) for value in row] for row in rows] == [[0.3, 0.5, 0.0, 0.8]] * 4
    assert fake.log == ["forward", "backward"] * 7  # three to warm up; no flush, no hold: as launched
    fake.log.clear()
    there_and_back = timer.stream(lambda: fake.work(2e-3, "run"), trips=2)
    assert there_and_back.median_s == pytest.approx(1e-3) and set(fake.log) == {"run"}
