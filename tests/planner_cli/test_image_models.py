"""The command on models without a vocabulary: their sequence follows from the image."""

from __future__ import annotations

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
