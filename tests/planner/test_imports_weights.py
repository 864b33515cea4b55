"""Sizes of checkpoints: headers of a whole catalogue model, written as its files are, add up to its description."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from hwprofiles.errors import UserError
from planner.imports.weights import INDEX, PARTS, read_weights
from sim.families import load_model
from sim.model import ModelSpec, total_params
from tests.planner_cli.running import moecast


def tensors_of(model: ModelSpec) -> Iterator[tuple[str, list[int]]]:
    """Names and shapes of a checkpoint in the form of Qwen3-MoE and OLMoE (biasless GQA, all experts one by one)."""
    d = model.hidden_dim
    yield "model.embed_tokens.weight", [model.vocab_size, d]
    yield "lm_head.weight", [model.vocab_size, d]
    yield "model.norm.weight", [d]
    for i, layer in enumerate(model.layers):
        head, att, moe = f"model.layers.{i}.", layer.attention, layer.moe
        yield head + "self_attn.q_proj.weight", [att.heads * att.head_dim, d]
        yield head + "self_attn.k_proj.weight", [att.kv_heads * att.head_dim, d]
        yield head + "self_attn.v_proj.weight", [att.kv_heads * att.v_head_dim, d]
        yield head + "self_attn.o_proj.weight", [d, att.heads * att.v_head_dim]
        for norm in ("q_norm", "k_norm"):
            yield f"{head}self_attn.{norm}.weight", [att.head_dim]
        for norm in ("input_layernorm", "post_attention_layernorm"):
            yield f"{head}{norm}.weight", [d]
        assert moe is not None
        yield head + "mlp.gate.weight", [moe.num_experts, d]
        for e in range(moe.num_experts):
            yield f"{head}mlp.experts.{e}.gate_proj.weight", [moe.ffn_dim, d]
            yield f"{head}mlp.experts.{e}.up_proj.weight", [moe.ffn_dim, d]
            yield f"{head}mlp.experts.{e}.down_proj.weight", [d, moe.ffn_dim]


def write(path: Path, tensors: list[tuple[str, list[int]]], dtype: str = "BF16", width: int = 2) -> int:
    """Headers and holes: the file has its full size and no blocks on disk."""
    header, at = {}, 0
    for name, shape in tensors:
        size = width
        for n in shape:
            size *= n
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + at)
    return at


MODEL = load_model("Qwen3-30B-A3B")


def test_a_whole_checkpoint_has_the_sizes_of_its_model(tmp_path: Path) -> None:
    tensors = list(tensors_of(MODEL))
    half = len(tensors) // 2
    size = write(tmp_path / "model-1.safetensors", tensors[:half])
    size += write(tmp_path / "model-2.safetensors", tensors[half:])
    where = {name: f"model-{1 + (i >= half)}.safetensors" for i, (name, _) in enumerate(tensors)}
    (tmp_path / INDEX).write_text(json.dumps({"metadata": {"total_size": size}, "weight_map": where}))
    found = read_weights(str(tmp_path), MODEL)
    assert found.notes == () and found.total == found.model_total == total_params(MODEL)
    assert found.bytes == size == 2 * found.total and found.dtypes == {"BF16": found.total}
    done = moecast("import", "weights", str(tmp_path), "--model", MODEL.name)
    assert done.code == 0 and "every size is that of the model" in done.out, done.err
    (tmp_path / "model-2.safetensors").unlink()
    with pytest.raises(UserError, match="index and shards differ"):
        read_weights(str(tmp_path), MODEL)
    (tmp_path / "model-1.safetensors").unlink()
    alone = read_weights(str(tmp_path / INDEX), MODEL)
    assert alone.params == {} and any("2.000 bytes for each" in note for note in alone.notes)


def test_what_differs_is_named(tmp_path: Path) -> None:
    tensors = [(n, s) for n, s in tensors_of(MODEL) if "layers.47." not in n and n != "lm_head.weight"]
    tensors += [("model.layers.48.mlp.gate.weight", [4, 4]), ("model.layers.0.mlp.gate.weight_scale_inv", [7])]
    write(tmp_path / "model.safetensors", tensors)
    found = read_weights(str(tmp_path / "model.safetensors"), MODEL)
    said = " ".join(found.notes)
    assert "layers 47 of" in said and f"-{MODEL.vocab_size * MODEL.hidden_dim:,}" in said and "7 scales" in said
    assert found.params[PARTS[3]] == 16


def damaged(folder: Path, kind: str) -> Path:
    path = folder / "model.safetensors"
    write(path, [("a", [4])])
    if kind == "pickle":
        path = folder / "pytorch_model.bin"
        path.write_bytes(b"\x80\x02")
    if kind == "torch":
        path.write_bytes(b"PK\x03\x04" + b"0" * 40)
    if kind == "length":
        path.write_bytes((2**40).to_bytes(8, "little") + b"{}")
    if kind == "shape":
        text = json.dumps({"a": {"dtype": "F32", "shape": "x", "data_offsets": [0, 0]}}).encode()
        path.write_bytes(struct.pack("<Q", len(text)) + text)
    if kind == "twice":
        write(folder / "other.safetensors", [("a", [4])])
        path = folder
    if kind == "outside":
        path.unlink()
        path = folder / INDEX
        path.write_text(json.dumps({"weight_map": {"a": "../../etc/x.safetensors"}}))
    if kind == "index":
        path = folder / INDEX
        path.write_text("[" * 100_000)
    if kind == "none":
        path.unlink()
        path = folder
    return path


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("pickle", "a pickle"), ("torch", "a pickle"), ("length", "not a safetensors"), ("shape", "as it was"),
        ("twice", "two files"), ("outside", "no file name beside it"), ("index", "not an index"), ("none", "0 .safe"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_said(kind: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=said):
        read_weights(str(damaged(tmp_path, kind)), MODEL)
