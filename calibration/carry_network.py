"""Carry collectives measured by others into hwprofiles/measured/network, in seconds and bytes.

    python -m calibration.carry_network SILICON_DIR COMM_DIR OUT

collectives.csv holds the sources whose licence allows it (see source.toml there). Rows of argonne-lcf/alcf-nccl-tests
state no licence: `alcf_rows` reads them from the raw folder for fit and score, and only what is derived is shipped.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from calibration.carry import write_csv

MICRO = 1e-6
KIB = 1024
SMALLEST_BYTES = 8 * KIB
COLUMNS = ["source", "set", "device", "fabric", "op", "num_gpus", "nodes", "bytes", "algorithm", "time_s"]
POINT = COLUMNS[:-1]
OPS = {"alltoall": "all_to_all", "sendrecv": "p2p", "send_recv": "p2p"}
# Environments of the repository's README that are not plain TCP and were run at all sizes; Sophia has no such numbers.
ALCF_TUNED = r"^(?:polaris|sirius)\|.*env_setup_[45]$|^sophia\|"


def apex_rows(silicon: Path) -> pd.DataFrame:
    """NCCL on one node of H100 and H200 (SXM)."""
    frame = pd.read_csv(silicon / "apex_nccl.csv")
    frame = frame[frame.gpu.str.contains("SXM") & (frame.num_nodes == 1)]
    device = frame.gpu.str.extract(r"^(\w\d+)")[0].str.lower()
    return _points(
        frame, source="apex_plus", device=device, num_gpus=frame.num_gpus_per_node, nodes=1, bytes=frame.size_kb * KIB
    )


def vidur_rows(silicon: Path) -> pd.DataFrame:
    """NCCL on DGX nodes, powers of two of its dense sizes; several nodes are on a fabric it does not state."""
    frame = pd.read_csv(silicon / "vidur_network.csv")
    steps = np.log2(frame["size"])
    frame = frame[frame.node.isin(["a100_dgx", "h100_dgx"]) & (np.abs(steps - np.round(steps)) < 1e-9)]
    device = frame.node.str.extract(r"^(\w\d+)_")[0]
    nodes = -(-frame.num_workers // frame.devices_per_node)
    return _points(
        frame, source="vidur", device=device, fabric="infiniband", num_gpus=frame.num_workers, nodes=nodes,
        bytes=frame["size"], set=frame.node,
    )  # fmt: skip


def wayne_rows(comm: Path) -> pd.DataFrame:
    """Two to six H100 of one NVSwitch host; `algorithm` where it was forced, else the library's choice."""
    frame = _nccl(comm, "waynehacking8/nccl-collectives-bench")
    tag = frame.config_tag
    frame = frame[~tag.str.contains("PROTO=|_reg")]  # one forced protocol, buffers registered for symmetric memory
    algorithm = frame.config_tag.str.extract(r"ALGO=(\w+)")[0].fillna("").str.lower()
    return _points(frame, source="waynehacking8", device="h100", nodes=1, bytes=frame.msg_bytes, algorithm=algorithm)


def xxrjun_rows(comm: Path) -> pd.DataFrame:
    """H100, one, two and ten nodes of two clusters (`set`)."""
    frame = _nccl(comm, "xxrjun/nccl-tests-cluster")
    cluster = np.where(frame.config_tag.str.startswith("pairwise0"), "first cluster", "second cluster")
    return _points(
        frame, source="xxrjun", device="h100", fabric="infiniband", nodes=frame.n_nodes, bytes=frame.msg_bytes,
        set=cluster,
    )  # fmt: skip


def alcf_rows(comm: Path) -> pd.DataFrame:
    """A100, two to 540 nodes of Polaris and Sirius (Slingshot) and Sophia (InfiniBand): to be read, not to be shipped.

    `set` is the environment and NCCL version, `source` the cluster.
    """
    frame = _nccl(comm, "argonne-lcf/alcf-nccl-tests")
    frame = frame[frame.config_tag.str.contains(ALCF_TUNED)]
    cluster = frame.config_tag.str.extract(r"^(\w+)\|")[0]
    fabric = np.where(cluster == "sophia", "infiniband", "slingshot")
    return _points(
        frame, source="alcf-" + cluster, device="a100", fabric=fabric, nodes=frame.n_nodes, bytes=frame.msg_bytes,
        set=frame.config_tag,
    )  # fmt: skip


def carry_network(silicon: Path, comm: Path, out: Path) -> None:
    """Write collectives.csv: per point the median over repeated measurements."""
    parts = [apex_rows(silicon), vidur_rows(silicon), wayne_rows(comm), xxrjun_rows(comm)]
    write_csv(out / "collectives.csv", COLUMNS, pd.concat(parts).astype(object).to_numpy().tolist())


def _nccl(comm: Path, source: str) -> pd.DataFrame:
    """Out-of-place rows of one source."""
    frame = pd.read_csv(comm / "comm_measurements.csv", low_memory=False)
    frame = frame[(frame.kind == "nccl_collective") & (frame.source == source) & (frame.in_place == 0)]
    return frame.assign(latency_us=frame.time_us, num_gpus=frame.n_gpus)


def _points(frame: pd.DataFrame, **known: object) -> pd.DataFrame:
    """Columns of the csv, one row per point."""
    defaults: dict[str, object] = {"set": "", "fabric": "", "algorithm": ""}
    frame = frame.assign(**{**defaults, **known}, time_s=frame.latency_us * MICRO)  # type: ignore[arg-type]
    frame = frame[(frame.bytes >= SMALLEST_BYTES) & (frame.num_gpus > 1)]
    whole = {name: int for name in ("num_gpus", "nodes", "bytes")}
    frame = frame.assign(op=frame.op.replace(OPS)).astype(whole)
    frame.loc[frame.nodes == 1, "fabric"] = ""
    found: pd.DataFrame = frame.groupby(POINT).time_s.median().reset_index()[COLUMNS]
    return found


def main(arguments: Sequence[str]) -> int:
    """Regenerate the file; returns the exit code."""
    if len(arguments) != 3:
        sys.stderr.write("usage: python -m calibration.carry_network SILICON_DIR COMM_DIR OUT\n")
        return 2
    silicon, comm, out = map(Path, arguments)
    out.mkdir(parents=True, exist_ok=True)
    carry_network(silicon, comm, out)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
