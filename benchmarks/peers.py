"""Side by side with other planners on the same questions: how many candidates a second each can judge.

    python -m benchmarks.peers --peer-path calculon=DIR --peer-path llm-analysis=DIR --peer-path simumax=DIR

Two questions: GPT-3 175B (96 layers, 12,288 wide, 2,048 tokens) on 1,024 A100-80G with a global batch of 1,536, and
Mixtral-8x22B (56 layers of 8 experts, 2 a token, 4,096 tokens) on 128 H100 with a global batch of 512. The same random
legal layouts (TP, PP, EP, DP, micro-batch; nothing interleaved, full recompute) go to everyone. Like with like: the
peers are closed forms of time and memory, and stand beside our screening, which bounds time from below and counts
memory exactly, one layout at a time and on columns; the event run is beside them as the full evaluation that only we
make. A layout that is refused (out of memory, an unsupported degree) counts as judged; `answered`: those with a step
time, where llm-analysis and SimuMax report memory but refuse nothing for it. One thread, CPU time, after one layout
to warm up. `whole search`: seconds for every legal layout of the question at the measured rate; ours is the planner
itself, bounds and event runs together, measured.

DIR is the folder that Python would import the peer from (a checkout, or `pip install --target DIR`); none of the
peers is a dependency of ours, and what is missing is said in its row. Calculon has no experts, SimuMax no H100 file:
it judges the second question on its A100, which changes its times but not what it computes.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import argparse
import contextlib
import importlib
import io
import json
import logging
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from benchmarks.figures import Figures, json_option
from hwprofiles import catalogue
from planner import find_plans
from planner.rules import apply, context, rules_of
from planner.space import space
from sim.columns import columns_of
from sim.families import load_model
from sim.model import ModelSpec
from sim.plan import Plan
from sim.run import Simulation
from sim.scenario import Scenario
from sim.screen import Screener
from sim.workload import Workload

FIXED = {"schedule": "1f1b", "vpp": 1, "recompute": ("full",), "account_ends": False}


@dataclass(frozen=True, kw_only=True)
class Asked:
    """One question: catalogue names, sizes; the names and files that the peers have for model and device."""

    title: str
    model: str
    cluster: str
    gpus: int
    software: str
    seq_tokens: int
    batch: int
    llm_gpu: str
    simumax_model: str

    @cached_property
    def spec(self) -> ModelSpec:
        """The model."""
        return load_model(self.model)


QUESTIONS = (
    Asked(title="GPT-3 175B on 1,024 A100", model="GPT3-175B", cluster="dgx-a100-80g", gpus=1024,
          software="megatron-lm", seq_tokens=2048, batch=1536, llm_gpu="a100-sxm-80gb", simumax_model="gpt3-175b"),
    Asked(title="Mixtral-8x22B on 128 H100", model="Mixtral-8x22B", cluster="dgx-h100", gpus=128,
          software="megatron-lm", seq_tokens=4096, batch=512, llm_gpu="h100-sxm-80gb", simumax_model="mixtral-8x7b"),
)  # fmt: skip


class CannotAnswer(Exception):
    """A question that a peer has no words for; no fault of this run."""


Judge = Callable[[Plan], float | None]  # step seconds; None where the peer refuses the layout


@dataclass(frozen=True, kw_only=True)
class Line:
    """One row: who, what kind of evaluation, layouts judged and answered, CPU seconds."""

    name: str
    kind: str
    judged: int
    answered: int
    cpu_s: float

    @property
    def per_s(self) -> float:
        """Layouts judged per CPU second."""
        return self.judged / self.cpu_s


# ---------------------------------------------------------------- peers: each makes a judge of one layout


def calculon(folder: Path, asked: Asked) -> Judge:
    """Calculon (calculon-ai): its GPT-3 and A100 files, one `Llm` compiled and run a layout."""
    if asked.spec.is_moe:
        raise CannotAnswer("it has no experts")
    llm = importlib.import_module("calculon.llm")
    system_type = importlib.import_module("calculon.system").System
    app = llm.Llm.Application(json.loads((folder / "models/gpt3-175B.json").read_text()))
    system = system_type(json.loads((folder / "systems/a100_80g.json").read_text()))
    silent = logging.Logger("silent")

    def judge(plan: Plan) -> float | None:
        fields = {
            "num_procs": asked.gpus, "tensor_par": plan.tp, "pipeline_par": plan.pp, "data_par": plan.dp,
            "tensor_par_net": 0, "pipeline_par_net": 1, "data_par_net": 1, "batch_size": asked.batch,
            "microbatch_size": plan.micro_batch_seqs, "datatype": "float16", "fused_activation": True,
            "attention_type": "multihead", "activation_recompute": "full", "pipeline_interleaving": 1,
            "optimizer_sharding": plan.dp > 1, "tensor_par_comm_type": "rs_ag", "tensor_par_overlap": "none",
            "seq_par_ag_redo": False, "data_par_overlap": False, "weight_offload": False,
            "activations_offload": False, "optimizer_offload": False, "training": True,
        }  # fmt: skip
        try:
            run = llm.Llm(app, silent)
            run.compile(system, llm.Llm.Execution.from_json(fields))
            run.run(system)
        except (llm.Llm.Error, AssertionError):  # its ways to refuse a layout it cannot run
            return None
        return asked.batch / float(run.get_stats_json(False)["sample_rate"])

    return judge


def llm_analysis(folder: Path, asked: Asked) -> Judge:
    """llm-analysis (cli99): its file of the device, one `LLMAnalysis.training` a layout."""
    config, made = (importlib.import_module(f"llm_analysis.{name}") for name in ("config", "analysis"))
    logging.getLogger("llm_analysis").setLevel(logging.CRITICAL)
    importlib.import_module("llm_analysis.logger").logger.setLevel(logging.CRITICAL)
    spec, layer = asked.spec, asked.spec.layers[0]
    ffn = layer.moe.ffn_dim if layer.moe else layer.ffn_dim
    model = config.ModelConfig(
        name=spec.name, num_layers=len(spec.layers), n_head=layer.attention.heads, hidden_dim=spec.hidden_dim,
        vocab_size=spec.vocab_size, max_seq_len=asked.seq_tokens, num_key_value_heads=layer.attention.kv_heads,
        ffn_embed_dim=ffn, expansion_ratio=ffn / spec.hidden_dim,
        moe_num_experts=layer.moe.num_experts if layer.moe else 1, moe_top_k=layer.moe.top_k if layer.moe else 1,
    )  # fmt: skip
    gpu = config.get_gpu_config_by_name(asked.llm_gpu)

    def judge(plan: Plan) -> float | None:
        ways = config.ParallelismConfig(
            tp_size=plan.tp, pp_size=plan.pp, dp_size=plan.dp, sp_size=plan.tp, ep_size=plan.ep
        )  # fmt: skip
        steps = asked.batch // (plan.dp * plan.micro_batch_seqs)
        try:
            found = made.LLMAnalysis(model, gpu, config.DtypeConfig(), ways, flops_efficiency=0.5).training(
                batch_size_per_gpu=plan.micro_batch_seqs, gradient_accumulation_steps=steps,
                global_batch_size=asked.batch, seq_len=asked.seq_tokens, ds_zero=made.DSZeRO.STAGE_1,
                activation_recomputation=made.ActivationRecomputation.FULL, mlp_gated_linear_units=spec.is_moe,
            )  # fmt: skip
        except (AssertionError, ValueError, ZeroDivisionError):  # its ways to refuse a layout it cannot run
            return None
        return float(found["latency_per_iter"])

    return judge


def simumax(folder: Path, asked: Asked) -> Judge:
    """SimuMax (MooreThreads): its model and A100 files; estimate, memory and cost of a layout."""
    config = importlib.import_module("simumax.core.config")
    perf = importlib.import_module("simumax.core.perf_llm")
    base = json.loads((folder / "configs/strategy/tp2_pp1_dp4_mbs1.json").read_text())
    model = json.loads((folder / f"configs/models/{asked.simumax_model}.json").read_text())
    spec, layer = asked.spec, asked.spec.layers[0]
    model |= {
        "hidden_size": spec.hidden_dim, "head_num": layer.attention.heads, "kv_head_num": layer.attention.kv_heads,
        "head_size": layer.attention.head_dim, "layer_num": len(spec.layers), "vocab_size": spec.vocab_size,
        "intermediate_size": layer.moe.ffn_dim if layer.moe else layer.ffn_dim,
    }  # fmt: skip

    def judge(plan: Plan) -> float | None:
        fields = base | {
            "seq_len": asked.seq_tokens, "world_size": asked.gpus, "tp_size": plan.tp, "pp_size": plan.pp,
            "ep_size": plan.ep, "etp_size": plan.etp, "micro_batch_size": plan.micro_batch_seqs,
            "micro_batch_num": asked.batch // (plan.dp * plan.micro_batch_seqs), "enable_recompute": True,
            "recompute_granularity": "full_block", "recompute_layer_num": len(spec.layers) // plan.pp,
        }  # fmt: skip
        try:
            run = perf.PerfLLM()
            run.configure(
                strategy_config=config.StrategyConfig.init_from_dict(fields),
                model_config=config.ModelConfig.init_from_dict(model),
                system_config=config.SystemConfig.init_from_config_file(str(folder / "configs/system/a100_pcie.json")),
            )
            run.run_estimate()
            run.analysis_mem()
            cost = run.analysis_cost()
        except (AssertionError, ValueError, ZeroDivisionError, NotImplementedError):
            return None  # its ways to refuse a layout it cannot run
        return float(str(cost.data["duration_time_per_iter"]).split()[0])

    return judge


PEERS: dict[str, Callable[[Path, Asked], Judge]] = {
    "calculon": calculon,
    "llm-analysis": llm_analysis,
    "simumax": simumax,
}


# ---------------------------------------------------------------- timing


def timed(name: str, kind: str, judge: Judge, plans: Sequence[Plan], limit_s: float) -> Line:
    """Judge the layouts in order, until `limit_s` of CPU time is used; the first is judged once before, to warm up."""
    judged = answered = 0
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        judge(plans[0])
        started = time.process_time()
        for plan in plans:
            answered += judge(plan) is not None
            judged += 1
            if time.process_time() - started > limit_s:
                break
        took = time.process_time() - started
    return Line(name=name, kind=kind, judged=judged, answered=answered, cpu_s=took)


def ours(asked: Asked, count: int, seed: int, limit_s: float) -> tuple[list[Line], list[Plan], int, float]:
    """Our rows, the layouts drawn, how many there are in all, CPU seconds of the whole search."""
    model, machines = asked.spec, catalogue.cluster(asked.cluster, gpus=asked.gpus)
    trainer = catalogue.software(asked.software)
    work = Workload(seq_tokens=asked.seq_tokens, global_batch_seqs=asked.batch)
    ctx, rules = context(model, machines, trainer, work), rules_of("megatron-lm")
    blocks = [b.take(apply(b, ctx, rules)[0]) for b in space(model, machines, work, FIXED, trainer)]
    legal = [block.plan(row) for block in blocks for row in range(len(block))]
    rng = np.random.default_rng(seed)
    plans = [legal[int(i)] for i in rng.choice(len(legal), size=min(count, len(legal)), replace=False)]
    screener = Screener(model, machines, trainer, work)

    def bound(plan: Plan) -> float | None:
        seen = screener(columns_of([plan])[0])
        return float(seen.bound_s[0]) if seen.fits[0] else None

    def event_run(plan: Plan) -> float | None:
        scenario = Scenario(model=model, cluster=machines, software=trainer, workload=work, plan=plan)
        report = Simulation(scenario, cost=screener.cost).report(trace=False)
        return report.step_s.value if report.fits else None

    lines = [timed("moecast", "bound and memory, one by one", bound, plans, limit_s)]
    wide = [block for block in space(model, machines, work, None, trainer)]
    started = time.process_time()
    fresh = Screener(model, machines, trainer, work)
    kept = [block.take(apply(block, ctx, rules)[0]) for block in wide]
    fits = sum(int(fresh(block).fits.sum()) for block in kept if len(block))
    took = time.process_time() - started
    lines.append(Line(name="moecast", kind="rules, bound and memory, columns (whole table)",
                      judged=sum(map(len, wide)), answered=fits, cpu_s=took))  # fmt: skip
    lines.append(timed("moecast", "event run", event_run, plans, limit_s))
    started = time.process_time()
    find_plans(model, machines, trainer, work, target="megatron-lm", fixed=FIXED)
    return lines, plans, len(legal), time.process_time() - started


def side_by_side(
    asked: Asked, peers: Sequence[tuple[str, str]], count: int, seed: int, limit_s: float, figures: Figures
) -> list[str]:
    """The rows of one question; returns what was not run, and why."""
    lines, plans, legal, search_s = ours(asked, count, seed, limit_s)
    failed = []
    for name, folder in peers:
        sys.path.insert(0, folder)
        try:
            lines.append(timed(name, "closed form", PEERS[name](Path(folder), asked), plans, limit_s))
        except Exception as error:  # a peer is foreign code: whatever it raises is its row, not the end
            failed.append(f"{asked.title}: {name} not run, {type(error).__name__}: {error}")
        finally:
            sys.path.remove(folder)
    for line in lines:
        whole = "" if "table" in line.kind else f", {legal / line.per_s:,.1f} s for all {legal:,} legal layouts"
        note = f"{line.judged:,} judged, {line.answered:,} answered in {line.cpu_s:.2f} s{whole}"
        figures.add(f"{asked.title}: {line.name}, {line.kind}", line.per_s, "/s", note)
    figures.add(f"{asked.title}: moecast, the whole search", search_s, "s", f"{legal:,} legal layouts, bounds and runs")
    for said in failed:
        print(said)
    return failed


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-path", action="append", default=[], metavar="NAME=DIR",
                        help=f"a peer and the folder to import it from; NAME is one of {', '.join(PEERS)}")  # fmt: skip
    parser.add_argument("--count", type=int, default=100, help="layouts drawn (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="seed of the draw (default: %(default)s)")
    parser.add_argument("--limit-s", type=float, default=20.0, help="CPU seconds a row (default: %(default)s)")
    json_option(parser)
    args, figures = parser.parse_args(), Figures()
    peers = [(name, folder) for name, _, folder in (text.partition("=") for text in args.peer_path)]
    for name, folder in peers:
        if name not in PEERS or not Path(folder).is_dir():
            parser.error(f"--peer-path {name}={folder}: give NAME=DIR, NAME one of {', '.join(PEERS)}, DIR a folder")
    failed = [
        said for asked in QUESTIONS
        for said in side_by_side(asked, peers, args.count, args.seed, args.limit_s, figures)
    ]  # fmt: skip
    figures.write(args.json)
    return 1 if any(CannotAnswer.__name__ not in said for said in failed) else 0


if __name__ == "__main__":
    raise SystemExit(main())
