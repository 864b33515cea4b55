"""Every target writes what its golden files hold, echoes the degrees, and takes no name as shell text."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hwprofiles.catalogue import software
from hwprofiles.errors import UserError
from hwprofiles.hostmap import host_map
from planner.export import EXPORTS, Handover, export_plan, write_export
from planner.export.base import yaml_text
from planner.export.handover import handover_from
from planner.export.megatron_bridge import tree_of
from planner.export.megatron_lm import flags_of
from planner.planfile import plan_fields
from sim.mesh import RankMap
from sim.plan import Plan
from tests.planner.handed import handover

GOLDEN = Path(__file__).parent / "golden"
FOLDED = Plan(tp=2, pp=4, vpp=3, dp=4, ep=8, edp=1, schedule="interleaved", recompute=("moe_act", "layernorm"))
SHARDED = Plan(tp=2, dp=16, ep=8, edp=4, zero_stage=3, recompute=("full",))
PIPED = Plan(pp=4, dp=8, ep=8, edp=1, recompute=("full",))
CASES: dict[str, Handover] = {
    "megatron-lm": handover(FOLDED),
    "megatron-bridge": handover(FOLDED),
    "deepspeed": handover(PIPED),
    "torchtitan": handover(replace(SHARDED, pp=2, dp=8, edp=2, account_ends=True), model="DeepSeek-V3"),
    "accelerate": handover(SHARDED),
    "slurm": handover(FOLDED, cluster="dgx-h100-superpod"),
    "kubernetes": handover(FOLDED, base="registry.example/trainer:1"),
}


def text_of(made: Any) -> str:
    """All files of an export as one text."""
    return "".join(f"===== {name}\n{text}" for name, text in sorted(made.files.items()))


def test_every_target_has_a_case() -> None:
    assert set(CASES) == set(EXPORTS)


@pytest.mark.parametrize("target", sorted(EXPORTS))
def test_golden(target: str) -> None:
    made = export_plan(CASES[target], target)
    assert text_of(made) == (GOLDEN / f"{target}.txt").read_text(encoding="utf-8")
    assert made.degrees["tp"] == CASES[target].plan.tp and made.degrees["ep"] == CASES[target].plan.ep
    assert "notes.txt" in made.files


@pytest.mark.parametrize("target", sorted(EXPORTS))
def test_what_is_not_expressed_stands_in_the_notes(target: str) -> None:
    made = export_plan(CASES[target], target)
    assert made.missing
    for line in made.missing:
        assert f"not expressed: {line}" in made.files["notes.txt"]


def degrees_in(words: dict[str, Any]) -> tuple[int, ...]:
    names = ("tensor", "context", "pipeline", "expert")
    return tuple(int(words[f"{n}_{'' if n == 'context' else 'model_'}parallel_size"]) for n in names)


@pytest.mark.parametrize("plan", [FOLDED, PIPED, Plan(tp=4, cp=2, dp=4, ep=4, edp=4, etp=2)])
def test_degrees_in_the_files_equal_the_plans(plan: Plan) -> None:
    asked = handover(plan)
    flags = {words[0][2:].replace("-", "_"): words[1] for words in flags_of(asked) if len(words) == 2}
    tree = tree_of(asked)
    want = (plan.tp, plan.cp, plan.pp, plan.ep)
    assert degrees_in(flags) == want == degrees_in(tree["model"])
    assert int(flags["expert_tensor_parallel_size"]) == plan.etp == tree["model"]["expert_tensor_parallel_size"]


def test_deepspeed_batches_multiply_out() -> None:
    made = json.loads(export_plan(CASES["deepspeed"], "deepspeed").files["ds_config.json"])
    micro, accumulation = made["train_micro_batch_size_per_gpu"], made["gradient_accumulation_steps"]
    assert made["train_batch_size"] == micro * accumulation * PIPED.dp


@pytest.mark.parametrize(
    ("target", "plan", "rule"),
    [
        ("megatron-lm", replace(FOLDED, schedule="gpipe", vpp=1), "megatron-schedule"),
        ("megatron-bridge", replace(FOLDED, zero_stage=3), "megatron-fsdp-pp"),
        ("deepspeed", replace(PIPED, tp=2, dp=4), "deepspeed-autoep-autotp-pipeline"),
        ("torchtitan", PIPED, "torchtitan-zero"),
        ("accelerate", PIPED, "accelerate-pp"),
        ("slurm", replace(FOLDED, dp=3), "world-product"),
        ("kubernetes", replace(FOLDED, edp=3), "expert-grid-product"),
    ],
)
def test_a_plan_a_target_cannot_run_is_refused_by_the_rules_name(target: str, plan: Plan, rule: str) -> None:
    asked = replace(handover(FOLDED, base="image"), plan=plan)
    with pytest.raises(UserError, match=f"rule {rule}"):
        export_plan(asked, target)


def test_a_model_without_a_recipe_and_a_job_without_an_image_are_refused() -> None:
    asked = handover(SHARDED, model="Mixtral-8x7B")
    with pytest.raises(UserError, match="torchtitan-recipe"):
        export_plan(asked, "torchtitan")
    named = replace(asked, base="my.models:mixtral")
    assert "from my.models import mixtral as recipe" in export_plan(named, "torchtitan").files["moecast_torchtitan.py"]
    for bad in ("os;import:x", "a b:c", "x:y z", "no-colon"):
        with pytest.raises(UserError, match="MODULE:FUNCTION"):
            export_plan(replace(asked, base=bad), "torchtitan")
    for image in ("", "$(id)", "a b", "x\ny"):
        with pytest.raises(UserError, match="kubernetes-image"):
            export_plan(replace(asked, base=image), "kubernetes")


HOSTILE = 'x\'; touch /tmp/owned; echo "$(id)"\n#SBATCH --wrap=id\n- evil: `id`'


@pytest.mark.parametrize("target", sorted(EXPORTS))
def test_names_never_become_text_of_a_program(target: str) -> None:
    """The same lines without comments as under a harmless name, and the comments stay comments."""
    asked = CASES[target]
    base = asked.base or ("deepseek_v3:deepseek_v3_671b" if target == "torchtitan" else None)
    hostile = replace(
        asked, model=replace(asked.model, name=HOSTILE), cluster=replace(asked.cluster, name=HOSTILE), base=base
    )
    plain, attacked = export_plan(replace(asked, base=base), target), export_plan(hostile, target)
    for name in plain.files:
        if name == "notes.txt":
            continue
        kept = [
            [line for line in made.files[name].splitlines() if not line.startswith("# ")] for made in (plain, attacked)
        ]
        assert kept[0] == kept[1]


@pytest.mark.parametrize("target", ["megatron-lm", "deepspeed", "torchtitan", "slurm"])
def test_scripts_are_whole_shell_programs(target: str, tmp_path: Path) -> None:
    for path in write_export(export_plan(CASES[target], target), tmp_path / target):
        if path.suffix in (".sh", ".sbatch"):
            assert subprocess.run(["bash", "-n", str(path)]).returncode == 0
            assert path.stat().st_mode & 0o100 or not path.read_text().startswith("#!")


def test_a_shell_reads_the_flags_back_as_they_were(tmp_path: Path) -> None:
    asked = CASES["megatron-lm"]
    write_export(export_plan(asked, "megatron-lm"), tmp_path)
    script = 'source "$1/megatron_args.sh"; printf "%s\\0" "${MEGATRON_ARGS[@]}"'
    read = subprocess.run(["bash", "-c", script, "-", str(tmp_path)], capture_output=True, text=True, check=True).stdout
    assert read.split("\0")[:-1] == [word for words in flags_of(asked) for word in words]
    assert shlex.quote("a b") == "'a b'"


@pytest.mark.parametrize("target", ["megatron-lm", "deepspeed", "torchtitan"])
def test_the_launcher_says_which_node_is_which(target: str, tmp_path: Path) -> None:
    """torchrun keeps --node-rank only in its static rendezvous: the elastic ones sort the nodes by address."""
    write_export(export_plan(CASES[target], target), tmp_path)
    stub = tmp_path / "torchrun"
    stub.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    stub.chmod(0o755)
    env = {"PATH": f"{tmp_path}:/usr/bin:/bin", "NODE_RANK": "3", "MASTER_ADDR": "gpu7", "MASTER_PORT": "1234",
           "MEGATRON": "/m"}  # fmt: skip
    said = subprocess.run(["bash", tmp_path / "launch.sh", "train.py"], env=env, capture_output=True, text=True,
                          check=True).stdout.split("\n")  # fmt: skip
    given = dict(zip(said[::2], said[1::2], strict=False))
    want = {"--nnodes": "4", "--node-rank": "3", "--nproc-per-node": "8", "--master-addr": "gpu7",
            "--master-port": "1234"}  # fmt: skip
    assert {name: given.get(name) for name in want} == want
    assert not any("rdzv" in word for word in said)


def test_accelerate_keeps_the_machine_rank() -> None:
    assert 'rdzv_backend: "static"\n' in export_plan(CASES["accelerate"], "accelerate").files["accelerate.yaml"]


def test_the_second_rank_order_is_asked_for() -> None:
    plan = Plan(tp=2, pp=2, dp=8, ep=2, edp=8)
    asked = handover(plan, ranks=RankMap(order="tp-cp-ep-pp-dp"))
    assert ("--use-tp-pp-dp-mapping",) in flags_of(asked)
    assert tree_of(asked)["dist"] == {"use_tp_pp_dp_mapping": True}


def test_switches_that_the_real_parser_refuses_are_not_asked_for() -> None:
    """Found by `make test-exports`: the fused loss on 16-bit logits, and graphs of a step that looks for NaN."""
    base = software("megatron-lm", device="H100", model="Qwen3-30B-A3B", arch="moe")
    asked = handover(SHARDED, software=replace(base, loss_fp32_logits=False, cuda_graph=("full_iteration",)))
    assert ("--cross-entropy-fusion-impl", "native") in flags_of(asked)
    assert tree_of(asked)["model"]["cross_entropy_fusion_impl"] == "te"
    assert tree_of(asked)["rerun_state_machine"] == {"check_for_nan_in_loss": False}
    assert any("16-bit logits" in line for line in export_plan(asked, "megatron-lm").missing)


def test_slurm_asks_for_leaves_segments_and_the_nodes_in_order() -> None:
    made = export_plan(handover(Plan(tp=4, dp=32, ep=8, edp=16), cluster="dgx-h100-superpod"), "slurm")
    assert re.search(r"^#SBATCH --switches=\d+$", made.files["job.sbatch"], re.MULTILINE)
    rack = handover(Plan(tp=4, dp=36, ep=8, edp=18), cluster="gb200-nvl72", global_batch_seqs=72)
    assert "#SBATCH --segment=18\n" in export_plan(rack, "slurm").files["job.sbatch"]
    old = export_plan(rack, "slurm", "22.05")
    assert "--segment=" not in old.files["job.sbatch"] and any("22.05" in line for line in old.missing)
    part = handover(Plan(dp=96, ep=8, edp=12), cluster="gb200-nvl72", global_batch_seqs=96)  # 24 nodes, racks of 18
    made = export_plan(part, "slurm")
    assert "--segment=" not in made.files["job.sbatch"]
    assert any("must divide the number of nodes, 24" in line for line in made.missing)
    hosts = replace(host_map(list(range(32))), nodes=("n3", "n1", "n2", "n0"))
    ordered = handover(FOLDED, ranks=RankMap(hosts=hosts), cluster="dgx-h100")
    files = export_plan(replace(ordered, plan=replace(PIPED, dp=8)), "slurm").files
    assert files["hosts.txt"] == "n3\nn1\nn2\nn0\n" and "--distribution=arbitrary" in files["job.sbatch"]
    hostile = replace(host_map(list(range(32))), nodes=("n3", "n1", "n2", "$(id)"))
    with pytest.raises(UserError, match="slurm-node-names"):
        export_plan(replace(ordered, ranks=RankMap(hosts=hostile)), "slurm")


def test_unknown_targets_and_versions_are_refused() -> None:
    with pytest.raises(UserError, match="did you mean megatron-lm"):
        export_plan(CASES["slurm"], "megatron-llm")
    with pytest.raises(UserError, match=re.escape("0.19.2")):
        export_plan(CASES["megatron-lm"], "megatron-lm", "0.1")


def test_yaml_quotes_every_text() -> None:
    text = yaml_text({"a": "x: [y] # z", "b": [{"name": "n", "v": None}, {"name": "m", "v": False}], "c": {}})
    assert text == 'a: "x: [y] # z"\nb:\n  - name: "n"\n    v: null\n  - name: "m"\n    v: false\nc: {}\n'


def record_of(asked: Handover) -> dict[str, Any]:
    """The parts of a plan file that an export reads."""
    return {
        "inputs": {
            "model": asked.model.name,
            "cluster": asked.cluster.name,
            "software": asked.software.name,
            "devices": asked.plan.num_devices,
            "workload": {"seq_tokens": 4096, "global_batch_seqs": 64},
            "target": "megatron-lm",
            "options": {},
            "digest": "0",
        },
        "plans": [
            {"plan": plan_fields(asked.plan), "stages": list(asked.stages), "pipeline_layout": asked.layout},
        ],
    }


def test_a_plan_file_becomes_the_same_handover() -> None:
    asked = CASES["megatron-lm"]
    data = record_of(asked)
    read, stale = handover_from(data)
    assert read == replace(asked, software=software("megatron-lm", device="H100", model=asked.model.name, arch="moe"))
    assert stale
    for broken in ({"rank": 2}, {"rank": 0}, {"model": "Mixtral-8x7B"}, {"cluster": "no-such"}):
        with pytest.raises(UserError):
            handover_from(data, **broken)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="lacks"):
        handover_from({"inputs": {}, "plans": []})
