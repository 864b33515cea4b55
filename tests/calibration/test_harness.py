"""The measuring harness on a CPU: right results, rows that survive interruption, errors that become rows."""

from __future__ import annotations

import csv
import importlib
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
from calibration.harness import attention, compute, grouped, memory_ops, moe_block  # noqa: E402
from calibration.harness.environment import Monitor, environment  # noqa: E402
from calibration.harness.points import Bench, Point, Prepared, Skip, models, relative_error  # noqa: E402
from calibration.harness.rows import COLUMNS, OUT_OF_TIME, RowWriter, key, point_row, read_rows  # noqa: E402
from calibration.harness.runner import run_point  # noqa: E402
from calibration.harness.timing import Patience, Timer, percentile, summary  # noqa: E402
from hwprofiles.errors import UserError  # noqa: E402

ROOT = Path(__file__).parents[2]
FEW = ("launch", "grouped_gemm", "moe_block")


@pytest.fixture(scope="module")
def bench() -> Bench:
    return Bench(device="cpu", timer=Timer("cpu", measuring.PATIENCE["tiny"]), seed=3)


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
            assert row["op"].startswith("graph_") or row["dtype"] == "fp8_row"
            assert row["median_s"] == ""
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
    copy.write_bytes(whole[:-25])  # killed while writing the last row
    before = read_rows(copy)
    labels: list[str] = []
    measuring.measure("cpu", tmp_path, suite="tiny", families=FEW, progress=lambda i, n, what: labels.append(what))
    assert len(labels) == 1 and labels[0].startswith("moe_block_loop")
    after = read_rows(copy)
    assert [key(row) for row in after] == [key(row) for row in read_rows(measured)]
    assert after[:-1] == before[: len(after) - 1]


def test_without_resume_the_last_row_counts(tmp_path: Path) -> None:
    for _ in range(2):
        path = measuring.measure("cpu", tmp_path, suite="tiny", families=["launch"], resume=False) / "rows.csv"
    with path.open(newline="") as lines:
        raw = list(csv.DictReader(lines))
    assert len(raw) == 12
    assert read_rows(path) == raw[6:]


def test_points_that_lacked_time_say_so_and_are_measured_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setitem(measuring.BUDGET_S, "tiny", dict.fromkeys(measuring.FAMILIES, -1.0))
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
        measuring.measure("tpu", tmp_path, suite="huge")  # type: ignore[arg-type]
    assert len(problem.value.problems) == 2
    with pytest.raises(UserError, match="no family 'gem'"):
        measuring.measure("cpu", tmp_path, suite="tiny", families=["gem"])
    assert measuring.main(["--device", "cuda:4096", "--out", str(tmp_path)]) == 2
    assert "--device cpu" in capsys.readouterr().err
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


# ---------------------------------------------------------------- what is measured


@pytest.mark.parametrize("suite", ["tiny", "quick", "full"])
def test_every_point_is_unique_and_has_work(suite: Any) -> None:
    for name, family in measuring.FAMILIES.items():
        points = family.points(suite, "cuda:0")
        keys = [(p.op, p.dtype, p.pass_, tuple(sorted(p.sizes.items()))) for p in points]
        assert points and len(set(keys)) == len(keys)
        assert all(p.family == name for p in points)
        assert name == "launch" or all(p.bytes > 0 for p in points)
        assert name in measuring.BUDGET_S[suite]


def test_layer_shapes_add_up_to_the_model() -> None:
    # Public parameter counts, norms apart (below 0.01 %): Llama 3 8B 8.03e9, Llama 3 70B 70.55e9.
    dims = {model.name: model for model in models()}
    for name, layers, total in (("llama3-8b", 32, 8.03e9), ("llama3-70b", 80, 70.55e9)):
        sizes = [n * k for n, k in compute.layer_shapes(dims[name])]
        assert layers * sum(sizes[:-1]) + 2 * sizes[-1] == pytest.approx(total, rel=1e-3)
    whole = sum(n * k for n, k in compute.layer_shapes(dims["llama3-70b"]))
    assert sum(n * k for n, k in compute.layer_shapes(dims["llama3-70b"], tp=8)) * 8 == whole


@given(groups=st.integers(1, 64), blocks=st.integers(1, 40))
def test_uneven_groups_keep_the_rows(groups: int, blocks: int) -> None:
    rows = grouped.group_rows(groups, 16 * blocks, "uneven")
    assert sum(rows) == groups * 16 * blocks
    assert all(count >= 0 and count % 16 == 0 for count in rows)
    assert rows == sorted(rows, reverse=True)


@pytest.mark.parametrize("spread", ["even", "uneven"])
@pytest.mark.parametrize("pass_", compute.PASSES)
def test_grouped_gemm_equals_reference(bench: Bench, pass_: str, spread: str) -> None:
    rows = grouped.group_rows(4, 32, spread)
    x, w, dy = bench.randn(128, 32), bench.randn(4, 48, 32, seed=1), bench.randn(128, 48, seed=2)
    ends = torch.tensor(rows).cumsum(0).to(torch.int32)
    owner = torch.repeat_interleave(torch.arange(4), torch.tensor(rows))
    one_hot = torch.nn.functional.one_hot(owner, 4).float()
    exact = {
        "forward": lambda: torch.einsum("rg,gnk,rk->rn", one_hot, w.float(), x.float()),
        "dgrad": lambda: torch.einsum("rg,gnk,rn->rk", one_hot, w.float(), dy.float()),
        "wgrad": lambda: torch.einsum("rg,rn,rk->gnk", one_hot, dy.float(), x.float()),
    }[pass_]()
    loop = grouped.loop_mm(pass_, x, w, dy, rows)
    joined = torch.stack(loop) if pass_ == "wgrad" else torch.cat(loop)
    assert relative_error(grouped.kernel_mm(pass_, x, w, dy, ends), exact) < 0.005
    assert relative_error(joined, exact) < 0.005


@pytest.mark.parametrize("loop", [False, True])
def test_moe_block_equals_naive_block(bench: Bench, loop: bool) -> None:
    dims = moe_block.BlockDims(batch=2, seq=24, hidden=32, heads=4, kv_heads=2, head_dim=8, experts=6, top_k=2, ffn=40)
    assert moe_block.block_error(bench, dims, "fp32", loop=True, gradients=True) < 1e-4
    assert moe_block.block_error(bench, dims, "bf16", loop=loop, gradients=True) < 0.03


def test_moe_block_check_sees_a_wrong_block(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    dims = moe_block.BlockDims(batch=1, seq=24, hidden=32, heads=4, kv_heads=2, head_dim=8, experts=6, top_k=2, ffn=40)
    right = moe_block.block

    def unweighted(x: Any, weights: Any, dims: Any, *, loop: bool = False) -> Any:
        return right(x, weights | {"up": weights["up"].flip(0)}, dims, loop=loop)  # experts mixed up

    monkeypatch.setattr(moe_block, "block", unweighted)
    assert moe_block.block_error(bench, dims, "fp32", loop=True, gradients=False) > 0.1


@pytest.mark.parametrize(
    "point", compute.points("tiny", "cpu") + attention.points("tiny", "cpu"), ids=lambda p: p.label
)
def test_gemm_and_attention_points_pass_their_check(bench: Bench, point: Point) -> None:
    prepared = point.prepare(bench)
    assert prepared.check is not None and prepared.check() < 0.02


def test_memory_points_pass_their_check(bench: Bench) -> None:
    for point in memory_ops.points("tiny", "cpu"):
        prepared = point.prepare(bench)
        assert prepared.check is not None and prepared.check() < 0.02, point.label


def test_attention_backward_flop_is_two_and_a_half_forward() -> None:
    forward = attention.attention_flop("forward", 2, 64, 4, 128, 128, True)
    assert attention.attention_flop("backward", 2, 64, 4, 128, 128, True) == 2.5 * forward
    assert attention.attention_flop("forward", 2, 64, 4, 128, 128, False) == 2 * forward == 4 * 2 * 64**2 * 4 * 128


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
