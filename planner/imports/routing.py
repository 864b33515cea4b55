"""Recorded routing of others as counts per layer and expert: what `--routing` and `moecast place --loads` read.

Megatron-LM's logs (see `routing_logs`), SGLang's expert-distribution counts as JSON, tables as CSV or Parquet, arrays
as npz or npy. Pickles are refused, sizes are checked before anything is unpacked.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwprofiles.errors import UserError
from planner.imports.pickles import refuse_pickle
from planner.imports.routing_logs import Logged, is_log, log_files, read_logs
from planner.imports.shell_words import read_text
from planner.planfile import load_plan, plan_from, ranks_from
from sim.mesh import DEFAULT_MAP, RankMap
from sim.model import ModelSpec
from sim.plan import Plan
from sim.routing.tables import Counts, Trace, read_routing

Floats = NDArray[np.float64]

MAX_UNPACKED_BYTES = 2**30
MAX_CELLS = 50_000_000
MAX_MEMBERS = 64
ARRAYS = ("logical_count", "counts", "loads")
COLUMNS = ("layer", "expert", "count")
_REMEDY = (
    "in the environment that wrote it, save arrays: numpy.savez('counts.npz', logical_count=torch.load(FILE, "
    "weights_only=True)['logical_count'].cpu().numpy())"
)


@dataclass(frozen=True, kw_only=True)
class Imported:
    """counts[layer] over experts; kind: of the source; tokens: chosen experts of single tokens, where recorded."""

    kind: str
    counts: Mapping[int, Floats]
    notes: tuple[str, ...] = ()
    tokens: Logged | None = None

    def text(self) -> str:
        """CSV: a row for every expert of every layer."""
        rows = ["layer,expert,count\n"]
        for layer, row in sorted(self.counts.items()):
            rows += [f"{layer},{expert},{_plain(value)}\n" for expert, value in enumerate(row.tolist())]
        return "".join(rows)


def _plain(value: float) -> str:
    return str(int(value)) if value == int(value) else repr(value)


def plan_of(path: str, rank: int = 1) -> tuple[Plan, RankMap, tuple[int, ...]]:
    """(plan, rank map, layers per virtual stage) of a plan file, which says who recorded what."""
    records = load_plan(path)["plans"]
    if not 1 <= rank <= len(records):
        raise UserError(f"the file has plans 1 to {len(records)}, not {rank}", where="--rank")
    record = records[rank - 1]
    try:
        return plan_from(record["plan"]), ranks_from(record), tuple(int(n) for n in record["stages"])
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"plan {rank} lacks {error}; write it again with `moecast plan --out`", where=path) from None


def import_routing(
    paths: Sequence[str], *, model: ModelSpec | None = None,
    plan: tuple[Plan, RankMap, tuple[int, ...]] | None = None,
) -> Imported:  # fmt: skip
    """Counts of files or folders of one kind; several add up.

    model: its experts and layers bound what is read; needed for logs of single tokens or of local experts. plan: of the
    run that wrote a log, needed where it had pipeline stages. Raises UserError with the remedy.
    """
    logs = [file for path in paths for file in log_files(path)]
    if logs:
        if any(not is_log(path) and not Path(path).is_dir() for path in paths):
            raise UserError("logs and tables together; give files of one kind", where="FILES")
        if model is None:
            raise UserError("a log does not say how many experts there are; give --model", where="--model")
        degrees, ranks, stages = plan or (None, DEFAULT_MAP, ())
        logged = read_logs(logs, model, degrees, ranks, stages)
        made = Imported(kind=logged.kind, counts=logged.counts, notes=logged.notes, tokens=logged)
    else:
        parts = [_read(path, model) for path in paths]
        total: dict[int, Floats] = {}
        for part in parts:
            for layer, row in part.counts.items():
                if layer in total and len(total[layer]) != len(row):
                    raise UserError(f"layer {layer} has {len(total[layer])} experts in one file and {len(row)} in "
                                    "another; give files of one model", where="FILES")  # fmt: skip
                total[layer] = total[layer] + row if layer in total else row
        notes = tuple(dict.fromkeys(note for part in parts for note in part.notes))
        made = Imported(kind=", ".join(dict.fromkeys(part.kind for part in parts)), counts=total, notes=notes)
    _fits(made, model)
    return made


def _fits(made: Imported, model: ModelSpec | None) -> None:
    if not made.counts:
        raise UserError("no layer with a count in it; record some steps first", where="FILES")
    if model is None:
        return
    wrong = []
    for layer, row in sorted(made.counts.items()):
        moe = model.layers[layer].moe if layer < len(model.layers) else None
        if moe is None or len(row) != moe.num_experts:
            have = "no experts" if moe is None else f"{moe.num_experts} experts"
            wrong.append(f"layer {layer} with {len(row)} experts: {model.name} has {have} there; give its --model")
    if wrong:
        raise UserError(wrong[:16], where="FILES")


def _read(path: str, model: ModelSpec | None) -> Imported:
    suffix = Path(path).suffix.lower()
    refuse_pickle(path, _REMEDY)
    if suffix == ".json":
        return _json(path)
    if suffix in (".npz", ".npy"):
        return _arrays(path)
    if suffix in (".parquet", ".pq"):
        return _frame(_parquet(path), path, "Parquet")
    if suffix == ".csv":
        return _csv(path, model)
    raise UserError(
        "is none of .csv, .parquet, .npz, .npy, .json (SGLang's counts) or .jsonl (Megatron-LM's logs); give one",
        where=path,
    )


def _json(path: str) -> Imported:
    try:
        data = json.loads(read_text(path, MAX_UNPACKED_BYTES // 4))
        table = np.array(data["logical_count"], dtype=np.float64)
    except (ValueError, RecursionError, KeyError, TypeError):
        raise UserError("no table logical_count in it; give SGLang's counts as JSON", where=path) from None
    return Imported(kind="SGLang's expert distribution", counts=_rows(table, None, path))


def _rows(table: Floats, layers: NDArray[Any] | None, path: str) -> dict[int, Floats]:
    """Rows with a count of [layer, expert] or [step, layer, expert]; steps add up."""
    if table.ndim == 3:
        table = table.sum(axis=0)
    if table.ndim != 2 or 0 in table.shape:
        raise UserError(f"an array of shape {table.shape}; give [layer, expert] or [step, layer, expert]", where=path)
    if not np.all(np.isfinite(table)) or table.min() < 0:
        raise UserError("counts that are negative or not numbers; give counts >= 0", where=path)
    names = np.arange(len(table)) if layers is None else np.asarray(layers)
    if names.shape != (len(table),) or names.dtype.kind not in "iu" or len(set(names.tolist())) != len(names):
        raise UserError(f"layers must be {len(table)} different whole numbers", where=path)
    return {int(n): row for n, row in zip(names.tolist(), table, strict=True) if row.sum() > 0}


def _arrays(path: str) -> Imported:
    """npz or npy, never with pickled objects; unpacked sizes are summed up before reading."""
    try:
        if path.lower().endswith(".npz"):
            with zipfile.ZipFile(path) as archive:
                members = archive.infolist()
                size = sum(member.file_size for member in members)
            if len(members) > MAX_MEMBERS or size > MAX_UNPACKED_BYTES:
                raise UserError(f"refused: {len(members)} arrays of {size} bytes unpacked; at most {MAX_MEMBERS} of "
                                f"{MAX_UNPACKED_BYTES} in all", where=path)  # fmt: skip
        elif Path(path).stat().st_size > MAX_UNPACKED_BYTES:
            raise UserError("refused: too large for counts", where=path)
        found = np.load(path, allow_pickle=False)
        if isinstance(found, np.ndarray):
            table, layers = found, None
        else:
            with found:
                name = next((name for name in ARRAYS if name in found.files), None)
                if name is None:
                    raise UserError(f"no array named {', '.join(ARRAYS)} in it; name one so", where=path)
                table, layers = found[name], found["layers"] if "layers" in found.files else None
        if not isinstance(table, np.ndarray) or not isinstance(layers, np.ndarray | None):
            raise UserError("it holds files that are no arrays; write them with numpy.savez", where=path)
        if table.dtype.kind not in "iufb":
            raise UserError(f"an array of {table.dtype}, not of numbers", where=path)
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"not arrays of numbers ({str(error)[:80]}); write them with numpy.savez", where=path) from None
    return Imported(kind="arrays", counts=_rows(table.astype(np.float64), layers, path))


def _parquet(path: str) -> Any:
    try:
        import pyarrow
        import pyarrow.parquet as parquet
    except ImportError:
        raise UserError("Parquet needs pyarrow; install it, or give CSV", where=path) from None
    try:
        file = parquet.ParquetFile(path)
        meta = file.metadata
        size = sum(meta.row_group(i).total_byte_size for i in range(meta.num_row_groups))
        if size > MAX_UNPACKED_BYTES or meta.num_rows * len(COLUMNS) > MAX_CELLS:
            raise UserError(f"refused: {meta.num_rows} rows, {size} bytes unpacked; sum them up first", where=path)
        missing = [name for name in COLUMNS if name not in file.schema_arrow.names]
        if missing:
            raise UserError(f"columns {', '.join(missing)} are missing; give {', '.join(COLUMNS)}", where=path)
        return file.read(columns=list(COLUMNS)).to_pandas()
    except (OSError, pyarrow.ArrowException) as error:
        raise UserError(f"not a Parquet file ({str(error)[:80]})", where=path) from None


def _frame(table: Any, path: str, kind: str) -> Imported:
    """Counts of a table with columns layer, expert, count; rows of one pair add up, experts without a row are 0."""
    values = table[list(COLUMNS)].to_numpy(dtype=np.float64, na_value=np.nan)
    whole = values[:, :2]
    if len(values) == 0 or not np.all(np.isfinite(values)) or values.min() < 0 or np.any(whole != np.floor(whole)):
        raise UserError("rows that are not whole numbers >= 0; give layer, expert, count", where=path)
    if whole.max() > 10**6:
        raise UserError("a layer or expert beyond 1,000,000; correct the file", where=path)
    experts = int(whole[:, 1].max()) + 1
    names, at = np.unique(whole[:, 0].astype(np.int64), return_inverse=True)
    if len(names) * experts > MAX_CELLS:
        raise UserError(f"{len(names)} layers of {experts} experts are too many", where=path)
    out = np.zeros((len(names), experts))
    np.add.at(out, (at, whole[:, 1].astype(np.int64)), values[:, 2])
    return Imported(kind=kind, counts=_rows(out, names, path))


def _csv(path: str, model: ModelSpec | None) -> Imported:
    """Counts or a trace as `--routing` reads them."""
    read_text(path, MAX_UNPACKED_BYTES // 4)
    found = read_routing(Path(path), model=model.name if model is not None else "")
    size = {i: layer.moe.num_experts for i, layer in enumerate(model.layers) if layer.moe} if model is not None else {}
    if isinstance(found, Counts):
        pairs = {layer: dict(row) for layer, row in found.counts.items()}
    else:
        assert isinstance(found, Trace)
        chosen = {layer: np.bincount(picks.ravel()) for layer, picks in found.chosen.items()}
        pairs = {layer: dict(enumerate(counts.astype(float).tolist())) for layer, counts in chosen.items()}
    most = max((expert for row in pairs.values() for expert in row), default=-1) + 1
    if most > 10**6:
        raise UserError("an expert beyond 1,000,000; correct the file", where=path)
    out = {}
    for layer, row in pairs.items():
        counts = np.zeros(max(most, size.get(layer, 0)))
        counts[list(row)] = list(row.values())
        out[layer] = counts
    return Imported(kind="counts" if isinstance(found, Counts) else "trace", counts=out)
