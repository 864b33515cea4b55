"""HolisticTraceAnalysis on folders of exported timelines. python check_hta.py INDEX.json: one JSON line per folder."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import stubs

stubs.install("jupyterlab", "pydot")

from hta.trace_analysis import TraceAnalysis  # noqa: E402


def check(folder: str) -> dict[str, Any]:
    files = sorted(Path(folder).glob("rank-*.json*"))
    analysis = TraceAnalysis(trace_files={i: str(path) for i, path in enumerate(files)}, trace_dir=folder)
    times = analysis.get_temporal_breakdown(visualize=False).set_index("rank")
    overlap = analysis.get_comm_comp_overlap(visualize=False).set_index("rank")
    return {
        "ranks": {
            str(rank): {
                "idle": float(row["idle_time_pctg"]),
                "compute": float(row["compute_time_pctg"]),
                "other": float(row["non_compute_time_pctg"]),
                "overlap": float(overlap.loc[rank].iloc[0]) if rank in overlap.index else 0.0,
            }
            for rank, row in times.iterrows()
        }
    }


def main() -> None:
    for row in json.loads(Path(sys.argv[1]).read_text()):
        try:
            said = {"ok": True, **check(row["folder"])}
        except Exception as error:
            said = {"ok": False, "error": f"{type(error).__name__}: {error}"[:600]}
        print("RESULT " + json.dumps({"folder": row["folder"], **said}), flush=True)


if __name__ == "__main__":
    main()
