"""Slurm: a batch script that asks for the nodes of the plan, close together, and starts a launch script on each."""

from __future__ import annotations

import re
from math import ceil

from hwprofiles.errors import UserError
from planner.export.base import (
    MASTER_PORT,
    SHELL_HEAD,
    Export,
    Handover,
    comment,
    export_of,
    heading,
    plain_text,
    refuse_broken,
)

TARGET = "slurm"
VERSIONS = ("25.05", "22.05")
_NODE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,252}\Z")


def nodes_of(asked: Handover) -> tuple[str, ...]:
    """Names of the nodes in order of rank, where the plan has them. Raises UserError for names no host has."""
    hosts = asked.ranks.hosts
    if hosts is None or not hosts.nodes:
        return ()
    wrong = [plain_text(node) for node in hosts.nodes if not _NODE.match(node)]
    if wrong:
        raise UserError(
            f"{', '.join(wrong[:3])} cannot stand in a node list; use names of letters, digits, dots and dashes "
            "[rule slurm-node-names]",
            where=TARGET,
        )
    return tuple(hosts.nodes)


def topology_of(asked: Handover, version: str) -> tuple[list[str], list[str]]:
    """(#SBATCH options that ask for closeness, what they cannot say)."""
    nodes, per_node, machines = asked.nodes_used, asked.cluster.devices_per_node, asked.cluster
    if nodes == 1:
        return [], []
    options, missing = [], []
    domain_nodes = machines.domain_devices // per_node
    segment = min(domain_nodes, nodes)
    if domain_nodes > 1 and nodes % segment:
        missing.append(
            f"segments of {segment} nodes in one scale-up domain: --segment must divide the number of nodes, {nodes}"
        )
    elif domain_nodes > 1:
        if version == "22.05":
            missing.append(f"segments of {segment} nodes in one scale-up domain: Slurm 22.05 has no --segment")
        else:
            options.append(f"--segment={segment}")
    if machines.fabric and domain_nodes <= 1:
        leaf = machines.fabric[0]
        switches = ceil(nodes * per_node / leaf.devices)
        options.append(f"--switches={switches}")
    elif not machines.fabric:
        missing.append("leaf switches: the cluster file names none (fabric), so closeness is left to Slurm")
    return options, missing


def export(asked: Handover, version: str) -> Export:
    """`job.sbatch`. Raises UserError naming a broken rule."""
    refuse_broken(asked, "layout")
    per_node = asked.cluster.devices_per_node
    names = nodes_of(asked)
    closeness, missing = topology_of(asked, version)
    missing += ["partition, account and time limit: your site's; give them to sbatch"]
    if asked.ranks.hosts is not None and not names:
        missing.append("the host map: it has no node names, so the order of nodes is Slurm's")
    options = [
        "--job-name=moecast",
        f"--nodes={asked.nodes_used}",
        "--ntasks-per-node=1",
        f"--gres=gpu:{asked.devices_per_node}",
        *(["--exclusive"] if asked.devices_per_node == per_node else []),
        *closeness,
    ]
    if names:
        options.append(f"--nodelist={','.join(names)}")
    order = ""
    if names:
        order = 'export SLURM_HOSTFILE="$SLURM_SUBMIT_DIR/hosts.txt"\n'
    place = " --distribution=arbitrary" if names else ""
    head = comment(
        [*heading(asked, TARGET, version, missing), "", "Usage: sbatch job.sbatch path/to/launch.sh ARGUMENTS..."]
    )
    script = (
        SHELL_HEAD
        + "".join(f"#SBATCH {option}\n" for option in options)
        + head
        + "set -euo pipefail\n"
        + ': "${1:?give the launch script of a trainer}"\n'
        + order
        + f"export NNODES={asked.nodes_used} MASTER_PORT={MASTER_PORT}\n"
        + ('MASTER_ADDR="$(head -n 1 "$SLURM_HOSTFILE")"\n' if names else
           'MASTER_ADDR="$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)"\n')
        + "export MASTER_ADDR\n"
        + f"srun --kill-on-bad-exit=1{place} bash -c 'NODE_RANK=\"$SLURM_PROCID\" exec bash \"$@\"' bash \"$@\"\n"
    )  # fmt: skip
    files = {"job.sbatch": script}
    if names:
        files["hosts.txt"] = "".join(f"{name}\n" for name in names)
    return export_of(asked, TARGET, version, files, missing)
