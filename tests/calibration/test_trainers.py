"""Every trainer and release that the collected runs name has a software profile of its own."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import pytest

from calibration.case import Case
from calibration.runs import read_cases, trainer_of
from hwprofiles import catalogue
from hwprofiles.software_profiles import software_for_run

PUBLISHED = Path(str(resources.files("calibration") / "published"))
# Trainer, releases, the profile that stands for each: all that the tables of collected runs name, one line per trainer.
TRAINERS: tuple[tuple[str, dict[str, str]], ...] = (
    ("Composer/llm-foundry FSDP", {"2024-01": "llm-foundry-2024-01"}),
    ("MXNet NVIDIA Release 24.04 or PyTorch NVIDIA Release 24.04",
     {f"MLPerf Training v{v}": f"mlperf-v{v}" for v in ("4.1", "5.1")}),
    ("Megatron-Bridge", {"2026-05..08": "megatron-bridge-26.06"}),
    ("Megatron-Bridge (NeMo container)",
     {v: f"megatron-bridge-{v}" for v in (
         "25.09", "25.11", "26.02", "26.02.01", "26.04", "26.04.01", "26.06", "26.06.01", "26.08")}),
    ("Megatron-Bridge / NeMo 26.04", {"MLPerf v6.0": "mlperf-v6.0"}),
    ("Megatron-Core", {f"{how}PyTorch 2.5.0, CUDA 12.6": "megatron-core-0.9" for how in (
        "FSDP + EP; ", "MCore; ", "TP + EP + DP; ")} | dict.fromkeys(("MCore", "v0.8", "v0.9"), "megatron-core-0.9")),
    ("Megatron-LM", {"2021": "megatron-lm-2021", "2022": "megatron-lm-seqpar-2022", "mcore 0.7+": "megatron-core-0.7"}),
    ("Megatron-LM (mcore)", {"dev/main 2025-2026": "megatron-lm"}),
    ("NVIDIA NEMO", {"MLPerf Training v4.1": "mlperf-v4.1"}),
    ("NVIDIA NGC Pytorch 25.04 HugeCTR Nemo 25.09, DGL 25.03", {"MLPerf Training v5.1": "mlperf-v5.1"}),
    ("NVIDIA NeMo Framework Release 24.04", {"MLPerf Training v4.0": "mlperf-v4.0"}),
    ("NVIDIA NeMo Framework Release 24.09", {"MLPerf Training v4.1": "mlperf-v4.1"}),
    ("NVIDIA NeMo Framework Release 25.09", {"MLPerf Training v5.1": "mlperf-v5.1"}),
    ("NeMo", {"24.03.01": "nemo-24.07", "24.07": "nemo-24.07", "25.02": "nemo-25.02", "25.04": "nemo-25.04",
              "25.04.rc2": "nemo-25.04", "25.07": "nemo-25.07"}),
    ("NeMo 2.1.0, Megatron-LM, PyTorch NVIDIA Release 25.09", {"MLPerf Training v5.1": "mlperf-v5.1"}),
    ("NeMo AutoModel (PyTorch)",
     {f"main {day}": "nemo-automodel" for day in ("2025-10-06", "2025-10-08", "2026-04-10")}),
    ("PyTorch NVIDIA Release 23.09", {"MLPerf Training v5.1": "mlperf-v5.1"}),
    ("PyTorch NVIDIA Release 25.04; NeMo Framework NVIDIA Release 25.09", {"MLPerf Training v5.1": "mlperf-v5.1"}),
    ("PyTorch NVIDIA Release 25.09", {"MLPerf Training v5.1": "mlperf-v5.1"}),
    ("torchtitan", {"2024-12": "torchtitan-2024-12"}),
    ("Primus", {"": "primus-megatron"}),
    ("ms-swift", {"": "ms-swift"}),
    ("Megatron-DeepSpeed", {"": "megatron-deepspeed-2022"}),
)  # fmt: skip
# Sources of fits and out-of-memory outcomes, whose first word is the trainer.
OUTCOMES = {
    "AMD-AGI/Primus primus_pipeline.md": "primus-pipeline",
    "AMD-AGI/Primus moe_package fig 5": "primus-megatron",
    "Megatron-Bridge perf-memory-tuning skill": "megatron-bridge-26.06",
    "Megatron-Bridge perf-activation-recompute skill": "megatron-bridge-26.06",
    "Megatron-Bridge perf-moe-comm-overlap skill": "megatron-bridge-26.06",
    "arXiv 2504.14960 Table 3": "megatron-core-0.9",
    "modelscope/ms-swift Quick-start.md": "ms-swift",
    "torchtitan 2024-12": "torchtitan-2024-12",
}


@pytest.mark.parametrize(("framework", "releases"), TRAINERS, ids=[name for name, _ in TRAINERS])
def test_every_release_named_has_a_profile(framework: str, releases: dict[str, str]) -> None:
    assert {version: software_for_run(framework, version) for version in releases} == releases


@pytest.mark.parametrize("source", OUTCOMES)
def test_every_source_of_memory_outcomes_has_a_profile(source: str) -> None:
    assert software_for_run(trainer_of(source), "", notes=source) == OUTCOMES[source]


@pytest.mark.parametrize("file", sorted(PUBLISHED.glob("*.csv")), ids=lambda p: p.stem)
def test_no_published_run_falls_back_on_a_default_trainer(file: Path) -> None:
    cases = [case for case in read_cases(file) if isinstance(case, Case)]
    assert cases and [case.id for case in cases if "software" in case.assumed] == []


def test_what_primus_does_not_state_is_marked() -> None:
    """Its schedules forbid both data-parallel overlaps, its recipes ask for them; the rest is not claimed as known."""
    recipes, schedules = catalogue.software("primus"), catalogue.software("primus-pipeline")
    assert (recipes.dp_overlap_grad, recipes.dp_overlap_param) == (True, True)
    assert (schedules.dp_overlap_grad, schedules.dp_overlap_param) == (False, False)
    assert schedules.fused_grad_accumulation and not schedules.optimizer_post_validation
    assert {"host_sync", "fused_experts", "grad_dtype"} <= set(recipes.unknown) <= set(schedules.unknown)
