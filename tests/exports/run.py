"""Every exported file against the real parser of its target: `make test-exports`.

Sets up one environment (`.venv-exports`) with the packages that parse on a CPU, exports the plans of `plans.py`, runs
one process per target and compares what it echoes with the plan. Kept out of `make test`: it takes some GB.

    python -m tests.exports.run [TARGET...]      (all of CHECKERS, sglang, kubernetes, slurm, hta)
    python -m tests.exports.run --light          (megatron-lm and hta alone, with the few packages these need; where
                                                  they cannot be installed it says so and ends with 0)
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from planner.export import Handover, export_plan, write_export
from planner.export.megatron_model import model_settings
from sim.build.schedule import lane_order, num_warmup
from sim.mesh import RankMap, axis_dims
from sim.plan import Plan
from tests.exports.maps import run_sglang
from tests.exports.plans import handovers
from tests.exports.slurm_controller import installed, run_slurm
from tests.exports.timeline import run_hta

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).parent
VENV = ROOT / ".venv-exports"
OUT = ROOT / "out" / "exports"
LOCK = ROOT / "requirements-exports.lock"
# Wheels that are unpacked beside the locked packages: they ask for a newer Python or for GPU packages.
UNPACKED = ("megatron-core==0.19.2", "megatron-bridge==0.6.2", "torchtitan==0.3.0", "holistictraceanalysis==0.5.0")
SOURCES = ("deepspeed==0.19.8",)
WHEELS = ("sglang==0.5.23",)  # without what serves: the checker stands in for it
CHECKERS = {
    "megatron-lm": "check_megatron.py",
    "megatron-bridge": "check_bridge.py",
    "deepspeed": "check_deepspeed.py",
    "torchtitan": "check_torchtitan.py",
    "accelerate": "check_accelerate.py",
}
CONTROLLED = ("megatron-lm", "megatron-bridge", "deepspeed")  # whose parsers check the batch
LIGHT = ("megatron-lm", "hta")
LIGHT_VENV = ROOT / ".venv-exports-light"
LIGHT_UNPACKED = ("megatron-core", "holistictraceanalysis")
LIGHT_PACKAGES = frozenset(
    {
        "antlr4-python3-runtime", "einops", "filelock", "fsspec", "jinja2", "markupsafe", "mpmath", "narwhals",
        "networkx", "numpy", "omegaconf", "packaging", "pandas", "plotly", "psutil", "python-dateutil", "pytz",
        "pyyaml", "regex", "setuptools", "six", "sympy", "torch", "tqdm", "typing-extensions", "tzdata", "wheel",
    }
)  # fmt: skip
LEAST = 200  # plans a target must be asked about
AXES = ("tp", "cp", "dp", "pp", "etp", "ep", "edp")


def _stamp() -> str:
    """Everything an environment is made of."""
    return "\n".join([LOCK.read_text(), *UNPACKED, *SOURCES, *WHEELS])


def _is_ready(venv: Path) -> bool:
    ready = venv / ".ready"
    return ready.exists() and ready.read_text() == _stamp()


def environment(*, light: bool = False) -> Path:
    """Python of the environment of the parsers, made on first use. light: only what LIGHT needs."""
    venv = LIGHT_VENV if light and not _is_ready(VENV) else VENV
    python, ready = venv / "bin" / "python", venv / ".ready"
    if _is_ready(venv):
        return python
    print(f"making {venv.name} (once; some GB)", flush=True)
    subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
    pip = [str(python), "-m", "pip", "--quiet", "--disable-pip-version-check"]
    pins = [line for line in LOCK.read_text().splitlines() if line and not line.startswith("#")]
    if venv == LIGHT_VENV:
        pins = [pin for pin in pins if pin.partition("==")[0] in LIGHT_PACKAGES]
    subprocess.run([*pip, "install", "--no-deps", *pins], check=True)
    folder = venv / "downloads"
    wheel = ["--python-version", "3.12", "--only-binary", ":all:", "--no-deps", "--dest", str(folder)]
    unpacked = [pin for pin in UNPACKED if venv == VENV or pin.partition("==")[0] in LIGHT_UNPACKED]
    subprocess.run([*pip, "download", *wheel, *unpacked], check=True)
    if venv == VENV:
        build = {**os.environ, "DS_BUILD_OPS": "0"}
        subprocess.run([*pip, "install", "--no-deps", "--no-build-isolation", *SOURCES], check=True, env=build)
        subprocess.run([*pip, "install", "--no-deps", *WHEELS], check=True)
    (site,) = (venv / "lib").glob("python3*/site-packages")
    for path in sorted(folder.glob("*.whl")):
        zipfile.ZipFile(path).extractall(site)
    ready.write_text(_stamp())
    return python


def write_index(target: str, folder: Path) -> list[dict[str, Any]]:
    """Export the plans of a target and list them for its checker."""
    rows = []
    for n, asked in enumerate(handovers(target)):
        made = export_plan(asked, target)
        write_export(made, folder / str(n))
        rows.append(
            {
                "folder": str(folder / str(n)),
                "label": f"{asked.model.name} on {asked.cluster.name}: {asked.plan.label()} {asked.ranks.order}",
                "world": asked.plan.num_devices,
                "degrees": dict(made.degrees),
                "micro_batches": asked.num_micro_batches,
                "group": asked.plan.micro_batch_group,
                "order": asked.ranks.order,
                "sizes": sizes_of(asked) if target == "megatron-bridge" else {},
            }
        )
    (folder / "index.json").write_text(json.dumps(rows))
    return rows


def control(row: dict[str, Any], folder: Path) -> dict[str, Any]:
    """A copy of an export whose global batch does not divide: a parser that takes it checks nothing."""
    target = folder / "control"
    target.mkdir(exist_ok=True)
    for path in Path(row["folder"]).iterdir():
        text = path.read_text()
        for key in ("--global-batch-size ", "global_batch_size: ", '"train_batch_size": '):
            text = re.sub(re.escape(key) + r"(\d+)", lambda m, key=key: f"{key}{int(m[1]) * 10 + 1}", text)
        (target / path.name).write_text(text)
    return {**row, "folder": str(target)}


def sizes_of(asked: Handover) -> dict[str, Any]:
    """Fields of Bridge's model that the recipe of the plan's model would have."""
    renamed = {"num_experts": "num_moe_experts", "disable_bias_linear": "add_bias_linear"}
    left_out = {"vocab_size", "swiglu", "untie_embeddings_and_output_weights", "position_embedding_type", "window_size"}
    left_out |= {"max_position_embeddings", "group_query_attention", "window_attn_skip_freq", "moe_layer_freq"}
    said = {s.key: s.value for s in model_settings(asked) if s.key not in left_out}
    said["disable_bias_linear"] = not said["disable_bias_linear"]
    return {renamed.get(key, key): value for key, value in said.items()}


def groups_of(plan: Plan, ranks: RankMap, axis: str) -> set[tuple[int, ...]]:
    """Rank groups of an axis as the simulator lays them: one group through every rank."""
    ((size, stride),) = axis_dims(plan, axis, ranks)
    world = range(plan.num_devices)
    return {tuple(r + i * stride for i in range(size)) for r in world if (r // stride) % size == 0}


def mismatches(row: dict[str, Any], said: dict[str, Any]) -> list[str]:
    """What a parser echoes that is not the plan's."""
    if not said["ok"]:
        return [said["error"]]
    wrong = [
        f"{name} {got} instead of {row['degrees'][name]}"
        for name, got in said["degrees"].items()
        if got != row["degrees"][name]
    ]
    if said.get("micro_batches") not in (None, row["micro_batches"]):
        wrong.append(f"{said['micro_batches']} micro-batches instead of {row['micro_batches']}")
    if "groups" in said:
        plan = Plan(**{name: row["degrees"][name] for name in (*AXES, "vpp")})
        for axis in AXES:
            if {tuple(g) for g in said["groups"][axis]} != groups_of(plan, RankMap(order=row["order"]), axis):
                wrong.append(f"rank groups of {axis} differ")
    if said.get("chunks") and said["chunks"] != chunks_of(row):
        wrong.append("virtual stages run in another order")
    return wrong


def chunks_of(row: dict[str, Any]) -> dict[str, list[int]]:
    """Chunk of every forward in order, and forwards before the first pair on every stage, as simulated."""
    pp, vpp, group = row["degrees"]["pp"], row["degrees"]["vpp"], row["group"]
    count = {"pp": pp, "vpp": vpp, "num_micro_batches": row["micro_batches"], "group": group}
    steps = lane_order("interleaved", stage=0, **count)
    warmup = [num_warmup("interleaved", stage=stage, **count) for stage in range(pp)]
    return {"order": [step.chunk for step in steps if step.kind == "F"], "warmup": warmup}


def run_target(target: str, python: Path) -> int:
    """Number of plans whose files were not taken as meant."""
    started = time.monotonic()
    folder = OUT / target
    rows = write_index(target, folder)
    if target in CONTROLLED:
        split = next(row for row in rows if row["degrees"]["dp"] > 1)
        (folder / "index.json").write_text(json.dumps([*rows, control(split, folder)]))
    command = [str(python), str(HERE / CHECKERS[target]), str(folder / "index.json")]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=HERE, env={**os.environ, "PYTHONPATH": str(HERE)}
    )
    (folder / "log.txt").write_text(done.stdout + done.stderr)
    found = [json.loads(x[7:]) for x in done.stdout.splitlines() if x.startswith("RESULT ")]
    said = {one["folder"]: one for one in found}
    bad = 0
    for row in rows:
        wrong = mismatches(row, said[row["folder"]]) if row["folder"] in said else ["no answer; see log.txt"]
        if wrong:
            bad += 1
            print(f"  {row['label']}: {'; '.join(wrong)[:300]}")
    if target in CONTROLLED and said.get(str(folder / "control"), {"ok": True})["ok"]:
        bad += 1
        print("  the control, whose batch does not divide, was accepted")
    few = len(rows) < LEAST
    seconds = time.monotonic() - started
    print(f"{target}: {len(rows) - bad} of {len(rows)} plans accepted with their degrees, {seconds:.0f} s", flush=True)
    return bad + few


def run_kubernetes(python: Path) -> int:
    """Manifests against the published schemas, strict."""
    folder = OUT / "kubernetes"
    plans = handovers("megatron-lm")
    paths = []
    for n, asked in enumerate(plans):
        write_export(export_plan(replace(asked, base="registry.example/trainer:1"), "kubernetes"), folder / str(n))
        paths.append(str(folder / str(n) / "job.yaml"))
    done = subprocess.run(
        [str(python), "-m", "kubernetes_validate", "-k", "1.37", "--strict", *paths], capture_output=True, text=True
    )
    (folder / "log.txt").write_text(done.stdout + done.stderr)
    good = done.returncode == 0
    print(f"kubernetes: {len(paths)} manifests {'accepted' if good else 'NOT accepted; see log.txt'}", flush=True)
    return 0 if good else 1


def main() -> None:
    """Run the targets named, or all."""
    known = (*CHECKERS, "sglang", "kubernetes", "slurm", "hta")
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("targets", nargs="*", choices=[[], *known], metavar="TARGET")
    parser.add_argument("--light", action="store_true", help="megatron-lm and hta alone")
    given = parser.parse_args()
    asked = LIGHT if given.light else given.targets or known
    try:
        python = environment(light=given.light)
    except subprocess.CalledProcessError as error:
        if not given.light:
            raise
        print(f"the parsers could not be installed, their checks are skipped: {error.cmd[-1]}", flush=True)
        return
    OUT.mkdir(parents=True, exist_ok=True)
    bad = 0
    for target in asked:
        if target == "kubernetes":
            bad += run_kubernetes(python)
        elif target == "sglang":
            bad += run_sglang(python, OUT / "sglang")
        elif target == "slurm":
            if installed():
                bad += run_slurm(OUT / "slurm", handovers("megatron-lm"))
            else:
                print(
                    "slurm: not installed (Debian: apt-get install slurm-wlm); its scripts are not checked", flush=True
                )
        elif target == "hta":
            (OUT / "hta").mkdir(parents=True, exist_ok=True)
            bad += run_hta(python, OUT / "hta")
        else:
            bad += run_target(target, python)
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
