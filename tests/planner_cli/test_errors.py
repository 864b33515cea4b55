"""Bad input: exit code 2, one screen, says what, where and the remedy; every problem at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from hwprofiles.errors import UserError, error_text
from tests.planner_cli.running import LAYOUT, SMALL, Done, moecast

SCREEN_LINES = 40
SCREEN_CHARS = 8_000


def refused(done: Done, *words: str) -> None:
    """Exit code 2, nothing on stdout, a short message with these words on stderr."""
    assert done.code == 2, done.err
    assert done.out == ""
    assert done.err.startswith("error")
    assert "Traceback" not in done.err
    assert len(done.err.splitlines()) <= SCREEN_LINES
    assert len(done.err) <= SCREEN_CHARS
    for word in words:
        assert word in done.err


@pytest.mark.parametrize("verb", ["plan", "simulate"])
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--gpus", "0"], ["--gpus 0", "give at least 1"]),
        (["--gpus", "-8"], ["--gpus -8", "give at least 1"]),
        (["--gpus", "nan"], ["--gpus 'nan'", "not a whole number", "give an integer"]),
        (["--gpus", "NaN"], ["not a whole number"]),
        (["--gpus", "1e3"], ["not a whole number"]),
        (["--gpus", "9" * 29], ["give at most"]),
        (["--gpus", "9" * 500], ["not a whole number"]),
        (["--gpus", "12"], ["12"]),
        (["--seq-len", "0"], ["--seq-len 0"]),
        (["--global-batch", "inf"], ["--global-batch 'inf'"]),
        (["--tp", "0"], ["--tp 0"]),
        (["--ep", "-1"], ["--ep -1"]),
        (["--micro-batch", "half"], ["--micro-batch 'half'"]),
        (["--zero", "4"], ["--zero 4", "give at most 3"]),
        (["--top", "0"], ["--top 0"]),
        (["--seed", "-1"], ["--seed -1"]),
        (["--precision", "fp7"], ["--precision", "'fp7'", "bf16"]),
        (["--precision", "nvfp4"], ["--precision", "H100", "nvfp4", "bf16"]),
        (["--schedule", "magic"], ["--schedule", "1f1b"]),
        (["--target", "colossus"], ["--target", "megatron-lm"]),
        (["--recompute", "attn"], ["--recompute", "core_attn"]),
        (["--recompute", ""], ["--recompute", "none, full"]),
        (["--recompute", "full,moe_act"], ["--recompute", '"full" stands alone']),
        (["--model", "Qwen3-235B-A23B"], ["Qwen3-235B-A22B"]),
        (["--cluster", "dgx-h10"], ["dgx-h100"]),
        (["--software", "megatron-core-9"], ["megatron-core-9", "megatron-core-0."]),
        (["--json", "/nowhere/at/all.json"], ["--json", "no folder"]),
        (["--report", "-"], ["--report", "only --json"]),
    ],
)
def test_bad_options(verb: str, arguments: list[str], words: list[str]) -> None:
    refused(moecast(verb, *SMALL, *arguments), *words)


def test_all_problems_are_said_at_once() -> None:
    done = moecast("plan", "--model", "nothing-like-it", "--gpus", "0", "--tp", "x", "--zero", "9")
    refused(done, "nothing-like-it", "--gpus 0", "--tp 'x'", "--zero 9", "no --cluster")


def test_missing_question_names_the_options_and_where_to_look() -> None:
    refused(moecast("plan"), "no --model", "moecast show models", "no --cluster", "moecast show clusters")


@pytest.mark.parametrize(
    ("degrees", "words"),
    [
        (["--tp", "3"], ["tp", "3"]),
        (["--tp", "64"], ["tp"]),
        (["--ep", "7"], ["ep", "128"]),
        (["--pp", "5"], ["pp"]),
        (["--micro-batch", "5"], ["batch"]),
        (["--vpp", "2"], ["vpp"]),
    ],
)
def test_impossible_degrees_name_the_rule_and_the_remedy(degrees: list[str], words: list[str]) -> None:
    done = moecast("simulate", *SMALL, *degrees)
    refused(done, "[rule ", *words)


@pytest.mark.parametrize("content", [b"", b"\x00\xff\xfe\x80" * 64, b"{", b"[]", b'{"model_type": "alien"}', b"1"])
def test_bad_model_files(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(content)
    refused(moecast("simulate", *SMALL, "--model", str(path)), "config.json")


def test_ten_megabyte_config_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text('{"architectures": ["' + "x" * 10_000_000 + '"]}')
    refused(moecast("simulate", *SMALL, "--model", str(path)))


def test_cluster_file_without_a_source_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('name = "mine"\ndevice = "H100"\n')
    refused(moecast("simulate", *SMALL, "--cluster", str(path)), "source")


@pytest.mark.parametrize("kind", ["models", "devices", "clusters", "software"])
def test_show_unknown_names(kind: str) -> None:
    refused(moecast("show", kind, "no-such-thing-here"), "no-such-thing-here")


def test_show_unknown_kind() -> None:
    refused(moecast("show", "model"), "did you mean models?")


@pytest.mark.parametrize("content", [b"", b"\x80\x81", b"{}", b'{"plans": [], "search": {}, "inputs": {}}',
                                     b'{"plans": [{}], "search": {}, "inputs": {}, "format": 1}'])  # fmt: skip
def test_explain_refuses_other_files(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "plan.json"
    path.write_bytes(content)
    refused(moecast("explain", str(path)), "plan.json", "moecast plan --out")
    refused(moecast("explain", str(tmp_path / "missing.json")), "missing.json")


def test_calibrate_refuses_an_unknown_device(tmp_path: Path) -> None:
    refused(moecast("calibrate", "measure", "--device", "abacus", "--out", str(tmp_path)), "abacus", "cpu")
    refused(moecast("calibrate", "measure", "--device", "cpu", "--out", str(tmp_path), "--seed", "x"), "--seed")


@pytest.mark.parametrize("verb", [("measure", "--device", "cpu"), ("fit",)])
def test_calibrate_refuses_an_empty_folder(
    verb: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would be the current one."""
    monkeypatch.chdir(tmp_path)
    for empty in ("", " "):
        refused(moecast("calibrate", *verb, "--out", empty), "--out is empty", "--out measured")
    assert not list(tmp_path.iterdir())


def test_strict_refuses_numbers_that_rest_on_extrapolation() -> None:
    done = moecast("simulate", *SMALL, *LAYOUT, "--strict")
    refused(done, "--strict", "leave out --strict")


def test_long_and_unprintable_messages_stay_on_one_screen() -> None:
    error = UserError([f"problem {i} " + "x" * 1_000 + "\x1b[2J" for i in range(500)], where="y" * 5_000)
    text = error_text(error)
    assert len(text.splitlines()) <= SCREEN_LINES
    assert len(text) <= SCREEN_CHARS
    assert "\x1b" not in text
    assert "500 problems" in text
    assert "and 484 more" in text
