"""The command on models without a vocabulary: their sequence follows from the image."""

from __future__ import annotations

import json
from pathlib import Path

from tests.planner_cli.running import moecast

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_the_command_takes_the_sequence_of_the_image() -> None:
    asked = ("--model", str(EXAMPLES / "model-diffusion.toml"), "--cluster", "dgx-h100", "--gpus", "16", "--ep", "8")
    done = moecast("simulate", *asked, "--global-batch", "64", "--micro-batch", "4")
    assert done.code == 0 and "DiT-MoE-G/2-16E2A" in done.out
    wrong = moecast("simulate", *asked, "--global-batch", "64", "--seq-len", "2048")
    assert wrong.code == 2 and "makes 1024 tokens of an image" in wrong.err
    assert moecast("show", "models", str(EXAMPLES / "model-vision.toml")).code == 0


def test_a_plan_tries_as_many_tokens_of_short_sequences() -> None:
    """A micro-batch of 257 tokens eight times is too little for a device; the best of the plans has more."""
    asked = ("--model", str(EXAMPLES / "model-vision.toml"), "--cluster", "dgx-h100", "--gpus", "32")
    done = moecast("plan", *asked, "--global-batch", "4096", "--json", "-")
    assert done.code == 0
    best = json.loads(done.out)["plans"][0]
    assert best["plan"]["micro_batch_seqs"] > 8
