"""A measured run of a known plan as the row that `moecast validate` and `--anchor` read."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping

from hwprofiles import catalogue
from planner.export.base import Handover

_PRECISIONS = {"bf16": "BF16", "fp8": "FP8", "fp8_block": "FP8-BLOCKWISE", "mxfp8": "MXFP8", "nvfp4": "NVFP4"}


def run_row(asked: Handover, step_s: float, ident: str, cluster: str | None = None) -> Mapping[str, str]:
    """Cells by column. cluster: its file, where the plan was made from one."""
    p, work = asked.plan, asked.workload
    sharding = {2: "ZeRO-2", 3: "FSDP"}.get(p.zero_stage, "")
    layout = asked.layout if p.stages is not None else "acct" if p.account_ends else ""
    cells = {
        "id": ident, "model": asked.model.name, "gpu": catalogue.device_of(asked.cluster).name,
        "cluster": cluster or asked.cluster.name, "n_gpus": p.num_devices, "seq_len": work.seq_tokens,
        "gbs": work.global_batch_seqs, "mbs": p.micro_batch_seqs, "tp": p.tp, "pp": p.pp, "vpp": p.vpp, "cp": p.cp,
        "ep": p.ep, "etp": p.etp, "precision": _PRECISIONS[work.precision],
        "recompute": "+".join(p.recompute) or "none", "sharding": sharding, "sw_pp_layout": layout,
        "sw_mtp_layers": "" if work.with_mtp or not asked.model.mtp_layers else "none",
        "framework": asked.software.trainer, "framework_version": asked.software.name,
        "step_time_s": f"{step_s:.6g}",
    }  # fmt: skip
    return {name: str(value) for name, value in cells.items()}


def row_text(row: Mapping[str, str]) -> str:
    """The row as CSV with its header; cells are quoted where they need it."""
    out = io.StringIO()
    writer = csv.DictWriter(out, fieldnames=list(row), lineterminator="\n")
    writer.writeheader()
    writer.writerow(row)
    return out.getvalue()
