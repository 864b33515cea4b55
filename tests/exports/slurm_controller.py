"""Batch scripts against the real `sbatch --test-only`, under a controller of our own on this machine.

The controller has nodes that do not exist: nothing is ever run. It needs Slurm (Debian: apt-get install slurm-wlm).
"""

from __future__ import annotations

import contextlib
import getpass
import os
import re
import shutil
import socket
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from planner.export import Handover, export_plan, write_export
from sim.plan import Plan
from tests.planner.handed import handover

LEAF, NODES, BLOCKS = 8, 64, 4
TRIES = 40


def installed() -> bool:
    """Whether controller and client are there."""
    return all(shutil.which(name, path=_path()) for name in ("slurmctld", "sbatch", "scontrol"))


def _path() -> str:
    return os.environ.get("PATH", "") + ":/usr/sbin:/sbin"


def _port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def controller(devices_per_node: int, block: int = 0) -> Iterator[dict[str, str]]:
    """Environment in which sbatch asks a controller of NODES nodes behind leaf switches of LEAF nodes.

    block: nodes of a block instead, BLOCKS of them, as Slurm has it for scale-up domains over several nodes (25.05).
    """
    count, group = (BLOCKS * block, block) if block else (NODES, LEAF)
    with tempfile.TemporaryDirectory() as name:
        folder, user, host = Path(name), getpass.getuser(), socket.gethostname()
        (folder / "state").mkdir()
        leaves = count // group
        names = [f"node[{1 + i * group:03d}-{(i + 1) * group:03d}]" for i in range(leaves)]
        kind = "Block" if block else "Switch"
        lines = [f"{kind}Name=leaf{i} Nodes={nodes}\n" for i, nodes in enumerate(names)]
        lines.append(f"BlockSizes={block}\n" if block else f"SwitchName=spine Switches=leaf[0-{leaves - 1}]\n")
        (folder / "topology.conf").write_text("".join(lines))
        (folder / "gres.conf").write_text("")
        settings = {
            "ClusterName": "moecast", "SlurmctldHost": f"{host}(127.0.0.1)", "SlurmUser": user, "SlurmdUser": user,
            "AuthType": "auth/none", "CredType": "cred/none", "SlurmctldPort": _port(), "SlurmdPort": _port(),
            "StateSaveLocation": folder / "state", "SlurmctldPidFile": folder / "pid",
            "SlurmctldLogFile": folder / "log",
            "ProctrackType": "proctrack/pgid", "TaskPlugin": "task/none", "SelectType": "select/cons_tres",
            "SelectTypeParameters": "CR_Core", "GresTypes": "gpu",
            "TopologyPlugin": f"topology/{'block' if block else 'tree'}",
            "SchedulerType": "sched/backfill", "ReturnToService": 2, "MpiDefault": "none",
            "SwitchType": "switch/none", "SuspendProgram": "/bin/true", "ResumeProgram": "/bin/true",
            "SuspendTime": 3600,
            "JobAcctGatherType": "jobacct_gather/none", "SlurmdTimeout": 0,
        }  # fmt: skip
        text = "".join(f"{key}={value}\n" for key, value in settings.items())
        text += f"NodeName=node[001-{count:03d}] NodeAddr=127.0.0.1 CPUs=64 RealMemory=100000 "
        text += f"Gres=gpu:{devices_per_node} State=CLOUD\n"
        text += f"PartitionName=main Nodes=node[001-{count:03d}] Default=YES MaxTime=INFINITE State=UP\n"
        (folder / "slurm.conf").write_text(text)
        env = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf"), "PATH": _path()}
        with (folder / "out").open("w") as out:
            process = subprocess.Popen(["slurmctld", "-D"], env=env, stdout=out, stderr=subprocess.STDOUT)
            try:
                for _ in range(TRIES):
                    done = subprocess.run(["scontrol", "ping"], env=env, capture_output=True, text=True)
                    if "is UP" in done.stdout:
                        break
                    if process.poll() is not None:
                        raise RuntimeError(f"slurmctld ended: {(folder / 'out').read_text()[-800:]}")
                    time.sleep(0.25)
                else:
                    raise RuntimeError(f"slurmctld does not answer: {(folder / 'out').read_text()[-800:]}")
                yield env
            finally:
                process.kill()  # it keeps nothing that matters, and an ordered end waits for the nodes
                process.wait(timeout=30)


def ask(script: Path, env: dict[str, str], *options: str) -> tuple[bool, str]:
    """(whether sbatch would start it, what it says)."""
    done = subprocess.run(
        ["sbatch", "--test-only", *options, str(script), "launch.sh"], env=env, capture_output=True, text=True
    )
    return done.returncode == 0, (done.stdout + done.stderr).strip()


def version_of(env: dict[str, str]) -> str:
    """Which of the exporter's versions the installed Slurm reads: --segment came with 24.05."""
    said = subprocess.run(["sbatch", "--version"], env=env, capture_output=True, text=True).stdout
    found = re.search(r"(\d+)\.(\d+)", said)
    return "25.05" if found and (int(found[1]), int(found[2])) >= (24, 5) else "22.05"


def run_slurm(folder: Path, plans: list[Handover]) -> int:
    """Number of scripts that sbatch refuses, or that it would start on another number of nodes."""
    bad = count = 0
    version = ""
    by_node: dict[int, list[Handover]] = {}
    for asked in plans:
        by_node.setdefault(asked.cluster.devices_per_node, []).append(asked)
    for each, group in sorted(by_node.items()):
        with controller(each) as env:
            version = version_of(env)
            for asked in group:
                count += 1
                where = folder / str(count)
                write_export(export_plan(asked, "slurm", version), where)
                good, said = ask(where / "job.sbatch", env)
                nodes = said.rpartition("nodes ")[2].split()[0] if "nodes " in said else ""
                if not good or hosts(nodes, env) != asked.nodes_used:
                    bad += 1
                    print(f"  {asked.cluster.name}: {asked.plan.label()}: {said[:300]}")
            # controls, which a client that checks nothing would take
            unknown = ("--segment=4",) if version == "22.05" else ()
            for wrong in (f"--nodes={NODES + 1}", "--no-such-option=1", *unknown):
                good, said = ask(folder / "1" / "job.sbatch", env, wrong)
                if good:
                    bad += 1
                    print(f"  {wrong} was accepted: {said[:200]}")
    if version != "22.05":
        more, wrong_ones = run_segments(folder / "segments", version)
        count, bad = count + more, bad + wrong_ones
    said = f"{count - bad} of {count} scripts for {version} would start on their nodes (sbatch --test-only)"
    print(f"slurm: {said}", flush=True)
    return bad


def run_segments(folder: Path, version: str) -> tuple[int, int]:
    """(scripts asked, scripts that are wrong): --segment against blocks of a scale-up domain, one to four of them."""
    bad = 0
    each, block = 4, 18  # nodes of four devices, eighteen to a domain of 72
    with controller(each, block) as env:
        for domains in range(1, BLOCKS + 1):
            ranks = 72 * domains
            asked = handover(
                Plan(dp=ranks, ep=8, edp=ranks // 8), cluster="gb200-nvl72", global_batch_seqs=ranks
            )  # fmt: skip
            write_export(export_plan(asked, "slurm", version), folder / str(domains))
            good, said = ask(folder / str(domains) / "job.sbatch", env)
            nodes = [int(name[4:]) for name in names_of(said.rpartition("nodes ")[2].split()[0], env)] if good else []
            held = Counter((number - 1) // block for number in nodes)
            if not good or set(held.values()) != {block} or len(held) != domains:
                bad += 1
                print(f"  {domains} domains: {said[:200]}")
        for wrong in ("--segment=5", "--segment=24"):  # does not divide 72 nodes; is wider than a block
            good, said = ask(folder / str(BLOCKS) / "job.sbatch", env, wrong)
            if good:
                bad += 1
                print(f"  {wrong} was accepted: {said[:200]}")
    return BLOCKS, bad


def names_of(nodes: str, env: dict[str, str]) -> list[str]:
    """The hosts of a host list."""
    done = subprocess.run(["scontrol", "show", "hostnames", nodes], env=env, capture_output=True, text=True)
    return done.stdout.split()


def hosts(nodes: str, env: dict[str, str]) -> int:
    """Number of nodes of a host list."""
    return len(names_of(nodes, env))
