"""What an export takes and gives, and the few ways text may enter a file of another program.

Names of models, clusters, nodes and files are the user's: they become shell text only through `shlex.quote`, comments
only through `plain_text`, and YAML or JSON only through a writer that quotes.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hwprofiles.errors import UserError
from hwprofiles.specs import ClusterSpec, SoftwareProfile
from planner.rules import check
from planner.rules.fixed import shard_ranks
from sim.mesh import DEFAULT_MAP, RankMap
from sim.model import ModelSpec
from sim.plan import Plan
from sim.workload import Workload

MASTER_PORT = 29500
MAX_NAME = 120


@dataclass(frozen=True, kw_only=True)
class Handover:
    """A plan and everything a target must be told of it.

    stages: layers per virtual stage in model order; layout: the same as Megatron-LM's pipeline layout text.
    base: what the target builds on, as the user named it: a recipe or a container image (None: the model's known one).
    """

    model: ModelSpec
    cluster: ClusterSpec
    software: SoftwareProfile
    workload: Workload
    plan: Plan
    ranks: RankMap = DEFAULT_MAP
    stages: tuple[int, ...]
    layout: str
    base: str | None = None

    @property
    def num_micro_batches(self) -> int:
        """Micro-batches of one data-parallel rank per step."""
        return self.plan.num_micro_batches(self.workload.global_batch_seqs)

    @property
    def nodes_used(self) -> int:
        """Nodes the plan fills."""
        return max(1, self.plan.num_devices // self.cluster.devices_per_node)

    @property
    def devices_per_node(self) -> int:
        """Devices of each node that the plan uses."""
        return min(self.cluster.devices_per_node, self.plan.num_devices)

    @property
    def laid_out(self) -> bool:
        """True where stages are not the even split every trainer makes by itself."""
        return self.plan.stages is not None or self.plan.account_ends or len(set(self.stages)) > 1


@dataclass(frozen=True, kw_only=True)
class Export:
    """Files of one target by name, what could not be expressed, and the degrees the files ask for."""

    target: str
    version: str
    files: Mapping[str, str]
    missing: tuple[str, ...]
    degrees: Mapping[str, int]


def degrees_of(plan: Plan) -> dict[str, int]:
    """The degrees every file must echo."""
    return {name: int(getattr(plan, name)) for name in ("tp", "cp", "dp", "pp", "vpp", "ep", "etp", "edp")}


def shards_of(asked: Handover) -> tuple[int, int]:
    """(replicate, shard) degrees of data parallelism where FSDP shards it."""
    shard = int(shard_ranks(asked.plan))
    return asked.plan.dp // shard, shard


def refuse_broken(asked: Handover, target: str) -> None:
    """Raise UserError with every rule of `target` that the plan breaks, each by name."""
    broken = check(
        asked.plan, asked.model, asked.cluster, asked.software, asked.workload, target=target, ranks=asked.ranks
    )
    if broken:
        raise UserError([str(v) for v in broken], where=f"{target} cannot run {asked.plan.label()}")


def plain_text(text: str) -> str:
    """One printable line: what could end a comment or hide on a terminal becomes `?`, long names are cut."""
    flat = "".join(c if c.isprintable() else "?" for c in text)
    return flat if len(flat) <= MAX_NAME else flat[: MAX_NAME - 3] + "..."


def comment(lines: Iterable[str], prefix: str = "# ") -> str:
    """Comment lines, wrapped nowhere: each is one line of the file."""
    return "".join((prefix + "".join(c if c.isprintable() else "?" for c in line)).rstrip() + "\n" for line in lines)


def heading(asked: Handover, target: str, version: str, missing: Sequence[str]) -> list[str]:
    """What stands at the top of every file that knows comments."""
    hosts = f", rank order {asked.ranks.order}" if asked.ranks.order != DEFAULT_MAP.order else ""
    said = [
        f"{plain_text(asked.model.name)} on {asked.plan.num_devices} devices of {plain_text(asked.cluster.name)}: "
        f"{asked.plan.label()}{hosts}",
        f"for {target} {version}; made by moecast export",
    ]
    return said + [f"not expressed: {line}" for line in missing]


def notes_text(asked: Handover, target: str, version: str, missing: Sequence[str]) -> str:
    """The file `notes.txt` of every target."""
    lines = heading(asked, target, version, missing)
    if not missing:
        lines.append("everything of the plan is expressed")
    return comment(lines, prefix="")


def export_of(
    asked: Handover, target: str, version: str, files: Mapping[str, str], missing: Sequence[str]
) -> Export:  # fmt: skip
    """The export of these files, with `notes.txt` beside them and the degrees of the plan."""
    notes = {"notes.txt": notes_text(asked, target, version, missing)}
    return Export(
        target=target, version=version, files={**files, **notes}, missing=tuple(missing), degrees=degrees_of(asked.plan)
    )  # fmt: skip


def shell_flags(flags: Sequence[tuple[str, ...]], indent: str = "  ") -> str:
    """One flag a line, every value quoted for a shell."""
    return "".join(indent + " ".join(shlex.quote(word) for word in flag) + "\n" for flag in flags)


def shell_array(name: str, flags: Sequence[tuple[str, ...]]) -> str:
    """A bash array of flags."""
    return f"{name}=(\n{shell_flags(flags)})\n"


def torchrun(asked: Handover, command: str, env: Mapping[str, str | None] | None = None) -> str:
    """The body of a launch script: environment, then torchrun on every node (None unsets a variable).

    The rendezvous is torchrun's static one, the default: the elastic ones ignore --node-rank and number the nodes
    by the order of their addresses, which would undo the order of ranks that the plan was predicted for.
    """
    lines = []
    for name, value in (env or {}).items():
        lines.append(f"unset {name}" if value is None else f"export {name}={shlex.quote(value)}")
    lines += [
        f"NNODES=${{NNODES:-{asked.nodes_used}}}",
        "NODE_RANK=${NODE_RANK:-${SLURM_NODEID:-0}}",
        "MASTER_ADDR=${MASTER_ADDR:-localhost}",
        f"MASTER_PORT=${{MASTER_PORT:-{MASTER_PORT}}}",
        "",
        'exec torchrun --nnodes "$NNODES" --node-rank "$NODE_RANK" \\',
        f"  --nproc-per-node {asked.devices_per_node} \\",
        '  --master-addr "$MASTER_ADDR" --master-port "$MASTER_PORT" \\',
        f"  {command}",
    ]
    return "\n".join(lines) + "\n"


SHELL_HEAD = "#!/usr/bin/env bash\n"
SHELL_STRICT = 'set -euo pipefail\nHERE="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"\n'


def json_text(data: Any) -> str:
    """JSON with two spaces and a newline."""
    return json.dumps(data, indent=2, allow_nan=False) + "\n"


def yaml_text(data: Mapping[str, Any], indent: int = 0) -> str:
    """Block YAML of mappings, lists, texts, numbers and switches; every text is a JSON string, which YAML reads.

    >>> yaml_text({"model": {"name": "a: b", "sizes": [1, 2]}, "on": True})
    'model:\\n  name: "a: b"\\n  sizes: [1, 2]\\non: true\\n'
    """
    out = ""
    for key, value in data.items():
        pad = " " * indent + key + ":"
        if isinstance(value, Mapping) and value:
            out += f"{pad}\n{yaml_text(value, indent + 2)}"
        elif isinstance(value, list) and value and isinstance(value[0], Mapping):
            out += pad + "\n" + "".join(_item(row, indent + 2) for row in value)
        else:
            out += f"{pad} {json.dumps(value)}\n"
    return out


def _item(row: Mapping[str, Any], indent: int) -> str:
    text = yaml_text(row, indent + 2)
    return " " * indent + "- " + text[indent + 2 :]


def host_notes(asked: Handover) -> list[str]:
    """What a trainer cannot be told of where the ranks run."""
    hosts = asked.ranks.hosts
    if hosts is None:
        return []
    listed = ", ".join(plain_text(node) for node in hosts.nodes) if hosts.nodes else "the host map of the plan"
    return [f"the order of the nodes is the launcher's to keep (NODE_RANK or machine_rank 0, 1, ...): {listed}"]


def training_notes(asked: Handover) -> list[str]:
    """What of the training a script or recipe decides itself: the optimizer and the packing of documents."""
    o, work, out = asked.workload.optimizer, asked.workload, []
    if o.stated:
        dtypes = {"master": o.main_params, "gradient": o.main_grads, "exp_avg": o.exp_avg, "exp_avg_sq": o.exp_avg_sq}
        said = ", ".join(f"{name} in {dtype}" for name, dtype in dtypes.items() if dtype)
        out.append(f"optimizer {o.name}{' with ' + said if said else ''}: the script or recipe makes it")
    if work.lengths is not None:
        out.append(f"packed documents ({plain_text(work.lengths.source)}): the data set packs them")
    return out
