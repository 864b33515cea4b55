"""The closed loop: a profile made of microbenchmarks predicts the blocks and training steps measured beside them.

`check` compares every measured block and step of a folder of rows with its prediction, in time and peak memory. The
profile is fitted to the microbenchmarks alone (never to a block or a step), so each error is one of prediction.
"""

from __future__ import annotations

import statistics
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from calibration.check_cases import WHOLE, Measured, measured
from calibration.check_predict import Predicted, predict
from calibration.harness.rows import Row
from calibration.profile import build
from calibration.profile_rows import Measured as MeasuredRows
from calibration.profile_rows import read
from hwprofiles import catalogue
from hwprofiles.errors import UserError
from hwprofiles.software_profiles import load
from hwprofiles.specs import ClusterSpec

SOFTWARE = "moecast-harness"
CLUSTER = "cluster.toml"  # what makes a folder a profile
# Largest mean error that counts as closed: times of blocks and of steps, peak memory. A CPU's ranks share cores and
# memory with whatever else runs.
TARGETS = {
    "cuda": {"block": 0.05, "step": 0.08, "memory": 0.03},
    "cpu": {"block": 0.20, "step": 0.20},
}
OVER_RANKS = "_ranks"  # of one target's points, those over several ranks: their own verdict under the same target


@dataclass(frozen=True, kw_only=True)
class CheckedPoint:
    """One measured point and its prediction."""

    measured: Measured
    predicted: Predicted

    @property
    def error(self) -> float:
        """Predicted over measured seconds, less one."""
        return self.predicted.seconds / self.measured.seconds - 1.0

    @property
    def memory_error(self) -> float | None:
        """Predicted over measured peak bytes, less one; None where no peak was measured."""
        if self.measured.peak_bytes is None or self.predicted.peak_bytes is None:
            return None
        return self.predicted.peak_bytes / self.measured.peak_bytes - 1.0


@dataclass(frozen=True, kw_only=True)
class Summary:
    """Errors of one kind of point: how many, mean and median of their absolute values, mean with its sign."""

    name: str
    count: int
    mean: float
    median: float
    bias: float


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """One target: what it is about, the mean error, the largest allowed (None: there is no target)."""

    name: str
    count: int
    mean: float
    target: float | None

    @property
    def met(self) -> bool | None:
        """None where there is no target, or nothing to hold against it."""
        return None if self.target is None or not self.count else self.mean <= self.target


@dataclass(frozen=True, kw_only=True)
class Checked:
    """The closed loop of one device. provenance: of all predictions; left: what could not be predicted."""

    device: str
    kind: str
    points: tuple[CheckedPoint, ...]
    provenance: tuple[str, ...]
    left: Mapping[str, int]

    def times(self) -> tuple[Summary, ...]:
        """Errors in time by op and part."""
        return _by_name((f"{p.measured.op} {p.measured.part}", p.error) for p in self.points)

    def memory(self) -> tuple[Summary, ...]:
        """Errors in peak memory by op and part."""
        pairs = ((f"{p.measured.op} {p.measured.part}", p.memory_error) for p in self.points)
        return _by_name((name, error) for name, error in pairs if error is not None)

    def verdicts(self) -> tuple[Verdict, ...]:
        """Blocks, whole training steps and peak memory against the targets of this kind of device.

        Blocks and steps over several ranks also by themselves, so that the many on one rank do not hide them.
        """
        groups: dict[str, list[float]] = {"block": [], "block_ranks": [], "step": [], "step_ranks": [], "memory": []}
        for point in self.points:
            if not point.measured.is_step or point.measured.part == WHOLE:
                name = "step" if point.measured.is_step else "block"
                several = int(point.measured.sizes.get("ranks", 1)) > 1
                for group in (name, name + OVER_RANKS) if several else (name,):
                    groups[group].append(abs(point.error))
            if point.memory_error is not None:
                groups["memory"].append(abs(point.memory_error))
        targets = TARGETS[self.kind]
        return tuple(
            Verdict(
                name=name,
                count=len(e),
                mean=statistics.fmean(e) if e else 0.0,
                target=targets.get(name.removesuffix(OVER_RANKS)),
            )
            for name, e in groups.items()
            if e or not name.endswith(OVER_RANKS)
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values: points, summaries, verdicts, provenance."""
        return {
            "device": self.device,
            "kind": self.kind,
            "points": [
                {
                    "op": p.measured.op, "part": p.measured.part, "sizes": dict(p.measured.sizes),
                    "measured_s": p.measured.seconds, "spread": p.measured.spread, "predicted_s": p.predicted.seconds,
                    "error": p.error, "host_bound": p.predicted.host_bound, "measured_bytes": p.measured.peak_bytes,
                    "predicted_bytes": p.predicted.peak_bytes, "memory_error": p.memory_error,
                }
                for p in self.points
            ],
            "time": [vars(s) for s in self.times()],
            "memory": [vars(s) for s in self.memory()],
            "verdicts": [{**vars(v), "met": v.met} for v in self.verdicts()],
            "provenance": list(self.provenance),
            "left": dict(self.left),
        }  # fmt: skip


def check(folder: Path, *, rows: Path | None = None) -> Checked:
    """The closed loop of a folder of measured rows, or of a profile and the `rows` it is held against.

    Of rows alone a profile is fitted first, in a folder that is then forgotten. Raises UserError for folders that are
    neither, and for rows without a block or a step.
    """
    if (Path(folder) / CLUSTER).is_file():
        if rows is None:
            raise UserError(
                "a profile holds no measured blocks; give --rows, the folder `measure` wrote", where="--rows"
            )
        return _loop(read(rows), Path(folder))
    if rows is not None:
        raise UserError(f"has no {CLUSTER}; give the profile that `moecast calibrate fit` wrote", where=str(folder))
    with tempfile.TemporaryDirectory() as temporary:
        profile = Path(temporary) / "profile"
        build(Path(folder), profile)
        return _loop(read(Path(folder)), profile)


def _loop(found: MeasuredRows, profile: Path) -> Checked:
    kind = "cuda" if found.cuda else "cpu"
    return checked(found.rows, catalogue.cluster(str(profile / CLUSTER)), device=found.device, kind=kind)


def checked(rows: Iterable[Row], cluster: ClusterSpec, *, device: str, kind: str) -> Checked:
    """Predict every measured block and step of `rows` on a cluster of the profile's device; kind: "cuda" or "cpu".

    What the profile has no table for is left out, with the reason. Raises UserError where nothing was measured.
    """
    software = load(SOFTWARE, device=kind)
    points: list[CheckedPoint] = []
    left: Counter[str] = Counter()
    wanted = measured(rows)
    if not wanted:
        raise UserError(
            "no block and no training step was measured; run `moecast calibrate measure` for the families moe_block "
            "and train_step",
            where=device,
        )
    for point in wanted:
        try:
            points.append(CheckedPoint(measured=point, predicted=predict(point, cluster, software)))
        except UserError as error:
            left[f"{point.op}: {'; '.join(error.problems)}"] += 1
    notes = dict.fromkeys(note for p in points for note in p.predicted.provenance)
    return Checked(device=device, kind=kind, points=tuple(points), provenance=tuple(notes), left=dict(left))


def _by_name(pairs: Iterable[tuple[str, float]]) -> tuple[Summary, ...]:
    groups: dict[str, list[float]] = {}
    for name, error in pairs:
        groups.setdefault(name, []).append(error)
    return tuple(
        Summary(
            name=name, count=len(e), mean=statistics.fmean(map(abs, e)), median=statistics.median(map(abs, e)),
            bias=statistics.fmean(e),
        )
        for name, e in groups.items()
    )  # fmt: skip
