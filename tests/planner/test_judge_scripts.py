"""Launch scripts as people write them, and as nobody should: the right plan or words, and nothing is ever run."""

from __future__ import annotations

from pathlib import Path

import pytest

from hwprofiles.catalogue import cluster, software
from hwprofiles.errors import UserError
from planner.imports.launch import slurm_notes
from planner.imports.megatron import Launch, read_launch, world_of
from planner.imports.shell_logic import Flow, decided, statements, summed, without_texts
from sim.families import load_model

MODEL = load_model("Qwen3-30B-A3B")
BASE = software("megatron-lm", device="H100", model=MODEL.name, arch="moe")
N = "--micro-batch-size 1 --global-batch-size 64 --seq-length 4096"
TP, PP, EP = "--tensor-model-parallel-size", "--pipeline-model-parallel-size", "--expert-model-parallel-size"


def read(text: str, folder: Path, world: int = 32) -> Launch:
    path = folder / "run.sh"
    path.write_text(text)
    return read_launch(str(path), MODEL, BASE, world)


# Script -> (tp, pp, ep) that bash would start it with.
RIGHT: dict[str, tuple[str, tuple[int, int, int]]] = {
    "continued": (f"torchrun x.py \\\n  {TP} 2 \\\n  {PP} 4 \\\n  {EP} 4 {N}", (2, 4, 4)),
    "carriage returns": (f"torchrun x.py \\\r\n  {TP} 2 \\\r\n  {PP} 4 {N}\r\n", (2, 4, 1)),
    "comment among continued": (f"torchrun x.py {TP} 2 \\\n# {TP} 8 \\\n {EP} 4 {N}", (2, 1, 4)),
    "defaults": (f"TP=${{TP:-4}}\nPP=${{PP:=2}}\nrun {TP} $TP {PP} ${{PP}} {N}", (4, 2, 1)),
    "nested defaults": (f"A=2\nTP=${{TP:-${{A}}}}\nrun {TP} ${{TP}} {PP} ${{PP:-$A}} {N}", (2, 2, 1)),
    "several on a line": (f"TP=2 PP=4 EP=4\nexport X=1 Y=2\nrun {TP} $TP {PP} $PP {EP} $EP {N}", (2, 4, 4)),
    "semicolons": (f"TP=2; PP=4; run {TP} $TP {PP} $PP {N}; echo {TP} 8", (2, 4, 1)),
    "sums": (f"M=4\nG=8\nWORLD=$((M*G))\nrun {TP} $((WORLD / 16)) {EP} $(( (M + 4) % 16 )) {N}", (2, 1, 8)),
    "exec": (f"exec torchrun x.py {TP} 2 {N}", (2, 1, 1)),
    "exec array": (f'ARGS=({TP} 2 {N})\nexec torchrun x.py "${{ARGS[@]}}" "$@"', (2, 1, 1)),
    "inner shell": (f'O="{TP} 2 \\\n {N}"\nC="cd $PWD; python x.py ${{O}}"\nsrun sh -c "${{C}}"', (2, 1, 1)),
    "inner quotes": (f"ssh host 'torchrun x.py {TP} 2 {N}'", (2, 1, 1)),
    "pipe to a log": (
        f"torchrun x.py {N} {TP} 2 --recompute-granularity selective --recompute-modules mlp 2>&1 | tee log",
        (2, 1, 1),
    ),
    "here-document for sbatch": (f"sbatch <<EOF\n#!/bin/bash\nsrun python x.py {TP} 2 {N}\nEOF\n", (2, 1, 1)),
    "here-document for people": (f"cat <<'EOF'\nusage: {TP} 8\nEOF\nrun {TP} 2 {N}", (2, 1, 1)),
    "said, not done": (f"echo \"use {TP} 8\"\nrun {TP} 2 {N}\nprintf '%s' {TP} 4", (2, 1, 1)),
    "branch taken": (f'P=fp8\nif [ "$P" = fp8 ]; then\n TP=2\nelse\n TP=8\nfi\nrun {TP} $TP {N}', (2, 1, 1)),
    "branch of a number": (
        f"N=16\nif [[ $N -ge 64 ]]; then TP=8; elif [[ $N -ge 16 ]]; then TP=4; else TP=1; fi\nrun {TP} $TP {N}",
        (4, 1, 1),
    ),
    "case": (
        f"S=30b\ncase $S in\n 8b) TP=1 ;;\n 30b|32b) TP=2; PP=4 ;;\n *) TP=8 ;;\nesac\nrun {TP} $TP {PP} $PP {N}",
        (2, 4, 1),
    ),
    "appended": (f'A=({TP} 2)\nif [ -z "" ]; then A+=({EP} 8); fi\nrun ${{A[@]}} {N}', (2, 1, 8)),
    "associative": (
        f"declare -A C=([tp]=2 ['pp']=4)\nS=moe\nC[moe]=4\nrun {TP} ${{C[tp]}} {PP} ${{C[\"pp\"]}} {EP} ${{C[$S]}} {N}",
        (2, 4, 4),
    ),
    "twice": (f"run {TP} 2 {N} {TP} 4", (4, 1, 1)),
    "equals": (f"run {TP}=2 {EP}='8' {N}", (2, 1, 8)),
    "function": (f'go() {{\n  torchrun x.py {TP} 2 {N} "$@"\n}}\ngo --log-interval 1', (2, 1, 1)),
    "loop": (f"for seed in 1 2; do\n  torchrun x.py --seed $seed {TP} 2 {N}\ndone", (2, 1, 1)),
    "unknown flags": (f"run {TP} 2 {N} --my-own-flag 7 --wandb-project x", (2, 1, 1)),
    "tabs and spaces": (f"\t run\t{TP}\t2   {N}  # {TP} 8", (2, 1, 1)),
}
# Script -> words of its refusal.
REFUSED: dict[str, tuple[str, str]] = {
    "from the environment": (f"run {TP} $TP {N}", r"'\$TP' is not a whole number"),
    "from a command": (f"TP=$(nproc)\nrun {TP} $TP {N}", "not a whole number"),
    "from an argument": (f"run {TP} $1 {N}", "not a whole number"),
    "from an env file by a command": (f"export $(cat .env | xargs)\nrun {TP} $TP {N}", "not a whole number"),
    "misspelt": (f"run --tensor-model-paralel-size 2 {N}", "did you mean --tensor-model-parallel-size"),
    "underscores": (f"run --tensor_model_parallel_size 2 {N}", "did you mean --tensor-model-parallel-size"),
    "no value": (f"run {TP} --sequence-parallel {N}", "has no value"),
    "a sum by nothing": (f"run {TP} $((8 / 0)) {N}", "not a whole number"),
    "a sum that grows": (f"run {TP} $((999999999*999999999*999999999)) {N}", "not a whole number"),
    "two precisions": (f"run {TP} 2 {N} --bf16 --fp16", "--fp16 and --bf16 exclude each other"),
    "two layouts": (
        f"run {TP} 2 {PP} 2 {N} --pipeline-model-parallel-layout 'Et*24|t*24L' --decoder-last-pipeline-num-layers 2",
        "exclude each other",
    ),
    "two shardings": (f"run {N} --use-torch-fsdp2 --use-distributed-optimizer", "exclude each other"),
    "another model": (f"run {TP} 2 {N} --num-experts 64 --moe-router-topk 6", "--num-experts 64 is not Qwen3"),
    "negative": (f"run {TP} -2 {N}", "not a whole number|has no value"),
    "huge": (f"run {TP} {'9' * 400} {N}", "not a whole number"),
    "unicode digits": (f"run {TP} ² {N}", "not a whole number"),
    "nothing of it": ("#!/bin/bash\necho hello\n", "no flag of Megatron-LM"),
}


@pytest.mark.parametrize("name", RIGHT)
def test_the_plan_is_the_one_that_bash_would_start(name: str, tmp_path: Path) -> None:
    text, degrees = RIGHT[name]
    plan = read(text, tmp_path).plan
    assert (plan.tp, plan.pp, plan.ep) == degrees


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_known_is_refused_in_words(name: str, tmp_path: Path) -> None:
    text, said = REFUSED[name]
    with pytest.raises(UserError, match=said):
        read(text, tmp_path)


HOSTILE = (
    "$(touch {mark})", "`touch {mark}`", "; touch {mark}", "$(( $(touch {mark}) ))", "<(touch {mark})",
    "' ; touch {mark} ; '", "\"$(touch {mark})\"", "$((a[$(touch {mark})]))", "x\n touch {mark}\n",
    "${{X:-$(touch {mark})}}",
    "| touch {mark}", "&& touch {mark}", "\x1b]0;x\x07", "{{1..999999999}}", "$'\\x00'", "\x00", "${{!X}}", "*/../*",
)  # fmt: skip


@pytest.mark.parametrize("text", HOSTILE)
@pytest.mark.parametrize(
    "form",
    [
        f"TP={{}}\nrun {TP} $TP {N}",
        f"run {TP} {{}} {N}",
        f"if [ {{}} = 1 ]; then TP=2; fi\nrun {TP} 2 {N}",
        f"case {{}} in x) TP=2;; esac\nrun {TP} 2 {N}",
        f"A=({{}} {TP} 2)\nrun ${{{{A[@]}}}} {N}",
        f'sh -c "run {TP} 2 {N} {{}}"',
        f"cat <<{{}}\nrun {TP} 2 {N}\n",
        f"source {{}}\nrun {TP} 2 {N}",
    ],
)
def test_a_hostile_script_is_a_plan_or_words(text: str, form: str, tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    try:
        launch = read(form.format(text.format(mark=mark)), tmp_path)
    except UserError as error:
        assert "\x1b" not in str(error) and "\x00" not in str(error)
    else:
        assert launch.plan.tp == 2 and not any("\x1b" in note for note in launch.notes)
    assert not mark.exists()


def test_what_only_a_shell_can_decide_is_said(tmp_path: Path) -> None:
    text = (
        f'TP=2\nif [ -n "$BIG" ]; then\n  TP=4\n  NAME=x\nfi\nA=({TP} $TP)\n'
        f"if [[ $(hostname) == a* ]]; then A+=(--sequence-parallel --wandb-project x); fi\nrun ${{A[@]}} {N}"
    )
    launch = read(text, tmp_path)
    assert launch.plan.tp == 4
    said = [note for note in launch.notes if "only a shell" in note]
    assert len(said) == 2 and "TP is taken as 4" in said[0] and "--sequence-parallel is read" in said[1]
    assert not [n for n in read(f"if [ x = y ]; then TP=9; fi\nrun {TP} 2 {N}", tmp_path).notes if "shell" in n]


def test_what_is_not_modelled_is_said(tmp_path: Path) -> None:
    launch = read(f"run --context-parallel-size 2 --cp-comm-type a2a+p2p {N}", tmp_path)
    assert launch.plan.cp == 2 and any("taken as p2p" in note for note in launch.notes)


@pytest.mark.parametrize(
    ("text", "devices"),
    [
        ("torchrun --nnodes 2 --nproc-per-node=8 x.py", 16),
        ("G=8\nA=(--nproc_per_node $G --nnodes ${SLURM_NNODES:-4})\ntorchrun ${A[@]} x.py", 32),
        ("#SBATCH --nodes=16\n#SBATCH --gpus-per-node=8\nsrun x", 128),
        ("#SBATCH -N 4 --gres=gpu:h100:8 # all\nsrun x", 32),
        ("#SBATCH --nodes=2\nsrun x", None),
        ("torchrun --nnodes $N --nproc-per-node 8 x.py", None),
    ],
)
def test_devices_come_from_torchrun_or_from_slurm(text: str, devices: int | None, tmp_path: Path) -> None:
    (tmp_path / "a.sh").write_text(text)
    assert world_of(str(tmp_path / "a.sh")) == devices


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("", "no --segment"),
        ("#SBATCH --segment=18", ""),
        ("#SBATCH --segment=9", "may take a part"),
        ("#SBATCH --segment=24", "does not fit"),
        ("#SBATCH --segment=16", "does not divide 36"),
        ("#SBATCH --segment=x", "does not fit"),
    ],
)
def test_segments_of_slurm_are_compared_with_the_domains(line: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "a.sh").write_text(f"#!/bin/bash\n#SBATCH --nodes=36\n{line}\nsrun x\n")
    notes = slurm_notes(str(tmp_path / "a.sh"), cluster("gb200-nvl72", gpus=144))
    assert [said in note for note in notes] == ([True] if said else [])
    assert slurm_notes(str(tmp_path / "a.sh"), cluster("dgx-h100", gpus=64)) == []


def test_parts_of_the_reader() -> None:
    assert summed("$((-7 / 2)) $((7 % -2)) $((x)) $((2 * (3 + y)))", {"y": "4"}) == "-3 1 $((x)) 14"
    assert [decided(x) for x in ("[ a = a ]", "[ a != a ]", "[[ 3 -lt 2 ]]", "! [ -z '' ]", "test 2 -eq 2")] == [
        True, False, False, False, True,
    ]  # fmt: skip
    assert [decided(x) for x in ("[ -f x ]", "grep x y", "[ a = a ] && b", "[ -n $X ]", "[ a -eq 1 ]")] == [None] * 5
    assert statements("a 'x;y' $(b;c); d # e; f") == ["a 'x;y' $(b;c)", "d"]
    assert without_texts(["cat <<A", "x", "A", "cat > f <<A", "y", "A", "z"]) == ["cat <<A", "cat > f <<A", "y", "z"]
    flow = Flow()
    steps = ["if [ -f x ]", "then", "one", "elif [ a = a ]", "then two", "else three", "fi", "four"]
    assert [flow.taken(step) for step in steps] == ["", "", "one", "", "two", "three", "", "four"]


def test_experts_one_by_one_are_said_and_their_activation_is_not_recomputed_alone(tmp_path: Path) -> None:
    moe = f"run {TP} 2 {EP} 8 --num-experts 128 {N} --sequence-parallel"
    said = read(moe, tmp_path).notes
    assert any("no --moe-grouped-gemm" in note and "SequentialMLP" in note for note in said)
    assert not any("SequentialMLP" in note for note in read(f"{moe} --moe-grouped-gemm", tmp_path).notes)
    again = f"{moe} --recompute-granularity selective --recompute-modules moe_act"
    with pytest.raises(UserError, match=r"moe-act-grouped-gemm: .*add it"):
        read(again, tmp_path)
    assert read(f"{again} --moe-grouped-gemm", tmp_path).plan.recompute == ("moe_act",)
