"""Renumber the experts of a safetensors checkpoint: router rows, expert biases and expert weights together.

    python apply_permutation.py IN_DIR OUT_DIR permutation.json     write a renumbered copy and verify it
    python apply_permutation.py --self-test                         the function of a tiny model is unchanged

`permutation.json`: {"num_experts": E, "layers": {"3": [old number of the expert that gets number 0, of 1, ...]}}.
Needs numpy. Files are streamed: memory holds a header and one block of BLOCK bytes (a router row where that is larger).
Only `*.safetensors` and their index are written; copy the other files of the model yourself.
"""

from __future__ import annotations

import hashlib
import json
import re
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

BLOCK = 8 * 2**20
MAX_HEADER = 100 * 2**20
INDEX = "model.safetensors.index.json"
# One tensor an expert: its number stands after `experts.`; all experts in one tensor: the first axis counts them.
SINGLE = re.compile(r"^(.*\blayers\.(\d+)\..*?(?<!\w)experts\.)(\d+)(\..+)$")
STACKED = re.compile(r"^.*\blayers\.(\d+)\..*?(?<!\w)experts\.(?!\d)[\w.]+$")
ROUTER = re.compile(r"^.*\blayers\.(\d+)\.(?!.*attn).*?(?<!\w)(?:gate|router|wg)\.(?:\w+\.)*\w+$")


class Refused(Exception):
    """What stops the work, in words for its user."""


def read_permutation(path: str | Path) -> dict[int, list[int]]:
    """Old number per new number, per layer; each must be a permutation."""
    if Path(path).stat().st_size > MAX_HEADER:
        raise Refused(f"{path}: too large for a permutation")
    tree = json.loads(Path(path).read_text(encoding="utf-8"))
    try:
        experts = int(tree["num_experts"])
        out = {int(layer): [int(e) for e in order] for layer, order in tree["layers"].items()}
    except (KeyError, TypeError, ValueError, AttributeError):
        raise Refused(f"{path}: not a permutation file") from None
    for layer, order in out.items():
        if sorted(order) != list(range(experts)):
            raise Refused(f"{path}: layer {layer} is not a permutation of {experts} experts")
    return out


def read_header(file: BinaryIO, name: str) -> tuple[dict[str, Any], int]:
    """(header, where the data starts) of an open safetensors file; sizes are checked before anything is read."""
    file.seek(0, 2)
    size = file.tell()
    file.seek(0)
    first = file.read(8)
    length = struct.unpack("<Q", first)[0] if len(first) == 8 else 0
    if not 2 <= length <= min(MAX_HEADER, size - 8):
        raise Refused(f"{name}: not a safetensors file (its header would have {length} bytes)")
    try:
        header = json.loads(file.read(length))
        end = max((int(t["data_offsets"][1]) for n, t in header.items() if n != "__metadata__"), default=0)
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError):
        raise Refused(f"{name}: the header is damaged") from None
    if end != size - 8 - length:
        raise Refused(f"{name}: the file ends elsewhere than its header says")
    return header, 8 + length


def new_name(name: str, inverse: dict[int, list[int]]) -> str:
    """The name of a tensor after renumbering; inverse[layer][old] is the new number."""
    found = SINGLE.match(name)
    if not found or int(found[2]) not in inverse:
        return name
    old = int(found[3])
    if old >= len(inverse[int(found[2])]):
        raise Refused(f"{name}: expert {old} is beyond the permutation")
    return f"{found[1]}{inverse[int(found[2])][old]}{found[4]}"


def row_order(name: str, shape: list[int], orders: dict[int, list[int]]) -> list[int] | None:
    """Order in which the rows of a tensor are written, or None where they stay."""
    if SINGLE.match(name):
        return None
    found = STACKED.match(name) or ROUTER.match(name)
    if not found or int(found[1]) not in orders:
        return None
    order = orders[int(found[1])]
    if not shape or shape[0] != len(order):
        raise Refused(f"{name}: shape {shape} does not count {len(order)} experts on its first axis")
    return order


def _pieces(file: BinaryIO, start: int, size: int) -> Iterator[bytes]:
    file.seek(start)
    while size > 0:
        block = file.read(min(BLOCK, size))
        if not block:
            raise Refused("the file ends early")
        size -= len(block)
        yield block


def content(file: BinaryIO, start: int, size: int, order: list[int] | None) -> Iterator[bytes]:
    """Bytes of a tensor in blocks, its rows in `order`."""
    if order is None:
        yield from _pieces(file, start, size)
        return
    row = size // len(order)
    for old in order:
        yield from _pieces(file, start + old * row, row)


def permute_file(source: Path, target: Path, orders: dict[int, list[int]]) -> dict[str, str]:
    """Write one renumbered file; new name -> old name of its tensors. Offsets stay, names and rows change."""
    inverse = {layer: np.argsort(order).tolist() for layer, order in orders.items()}
    with source.open("rb") as file:
        header, start = read_header(file, source.name)
        tensors = {n: t for n, t in header.items() if n != "__metadata__"}
        names = {name: new_name(name, inverse) for name in tensors}
        renamed = {names.get(name, name): value for name, value in header.items()}
        text = json.dumps(renamed, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        with target.open("xb") as out:
            out.write(struct.pack("<Q", len(text)) + text)
            for name, tensor in sorted(tensors.items(), key=lambda item: item[1]["data_offsets"][0]):
                low, high = tensor["data_offsets"]
                for block in content(file, start + low, high - low, row_order(name, tensor["shape"], orders)):
                    out.write(block)
    return {new: old for old, new in names.items()}


def shards(folder: Path) -> list[Path]:
    """The safetensors files of a folder, by name."""
    found = sorted(path for path in folder.glob("*.safetensors") if path.is_file())
    if not found:
        raise Refused(f"{folder}: no .safetensors file in it (.bin and .pt are pickles: convert them first)")
    return found


def check_complete(names: set[str], orders: dict[int, list[int]]) -> None:
    """Every layer needs a router and all its experts, or renumbering would change the function."""
    for layer, order in orders.items():
        here = [name for name in names if re.search(rf"\blayers\.{layer}\.", name)]
        single: dict[str, set[int]] = {}
        for found in filter(None, map(SINGLE.match, here)):
            single.setdefault(found[4], set()).add(int(found[3]))
        stacked = [name for name in here if STACKED.match(name) and not SINGLE.match(name)]
        if not any(ROUTER.match(name) for name in here):
            raise Refused(f"layer {layer}: no router (gate, router or wg) among its tensors")
        if not single and not stacked:
            raise Refused(f"layer {layer}: no experts among its tensors")
        for tail, numbers in single.items():
            if numbers != set(range(len(order))):
                raise Refused(f"layer {layer}: {len(numbers)} of {len(order)} experts have a tensor {tail}")


def permute(source: str | Path, target: str | Path, orders: dict[int, list[int]]) -> int:
    """Write a renumbered copy of a checkpoint folder and verify it; number of files. Raises Refused."""
    into, out = Path(source), Path(target)
    files = shards(into)
    if out.resolve() == into.resolve():
        raise Refused("OUT_DIR is IN_DIR; give another folder")
    names: set[str] = set()
    for path in files:
        with path.open("rb") as file:
            names |= set(read_header(file, path.name)[0]) - {"__metadata__"}
    check_complete(names, orders)
    out.mkdir(parents=True, exist_ok=True)
    if any(out.glob("*.safetensors")):
        raise Refused(f"{out}: has .safetensors files already; give an empty folder")
    where: dict[str, str] = {}
    for path in files:
        olds = permute_file(path, out / path.name, orders)
        verify_file(path, out / path.name, olds, orders)
        where |= dict.fromkeys(olds, path.name)
    if (into / INDEX).is_file() and (into / INDEX).stat().st_size <= MAX_HEADER:
        index = json.loads((into / INDEX).read_text(encoding="utf-8"))
        index["weight_map"] = dict(sorted(where.items()))
        (out / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    return len(files)


def verify_file(source: Path, target: Path, olds: dict[str, str], orders: dict[int, list[int]]) -> None:
    """Read both files back by name: every tensor must hold the bytes of the one it came from, rows in order."""
    with source.open("rb") as one, target.open("rb") as two:
        (before, start), (after, begin) = read_header(one, source.name), read_header(two, target.name)
        for new, old in olds.items():
            sums = []
            order = row_order(old, before[old]["shape"], orders)
            for file, at, tensor, rows in ((one, start, before[old], order), (two, begin, after[new], None)):
                low, high = tensor["data_offsets"]
                total = hashlib.sha256()
                for block in content(file, at + low, high - low, rows):
                    total.update(block)
                sums.append((total.digest(), tensor["dtype"], tensor["shape"]))
            if sums[0] != sums[1]:
                raise Refused(f"{target.name}: {new} is not what {old} was")


def write_tensors(path: Path, tensors: dict[str, np.ndarray]) -> None:
    """A safetensors file of float32 arrays."""
    header, at = {}, 0
    for name, value in tensors.items():
        header[name] = {"dtype": "F32", "shape": list(value.shape), "data_offsets": [at, at + value.nbytes]}
        at += value.nbytes
    text = json.dumps(header).encode()
    data = b"".join(np.ascontiguousarray(value, dtype="<f4").tobytes() for value in tensors.values())
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def read_tensors(path: Path) -> dict[str, np.ndarray]:
    """The float32 arrays of a small safetensors file."""
    with path.open("rb") as file:
        header, start = read_header(file, path.name)
        file.seek(start)
        data = file.read()
    return {
        name: np.frombuffer(data[slice(*t["data_offsets"])], dtype="<f4").reshape(t["shape"])
        for name, t in header.items()
        if name != "__metadata__"
    }


def tiny_model(rng: np.random.Generator, *, experts: int, stacked: bool, layers: int = 2) -> dict[str, np.ndarray]:
    """Weights of a tiny model: experts one by one (names of Qwen3 and DeepSeek) or stacked (names of GPT-OSS)."""
    hidden, width, out = 8, 12, {}
    for layer in range(layers):
        head = f"model.layers.{layer}.mlp."
        router = head + ("router" if stacked else "gate")
        out[router + ".weight"] = rng.normal(size=(experts, hidden))
        out[router + (".bias" if stacked else ".e_score_correction_bias")] = rng.normal(size=experts)
        shapes = {"gate_proj": (width, hidden), "up_proj": (width, hidden), "down_proj": (hidden, width)}
        for name, shape in shapes.items():
            weights = rng.normal(size=(experts, *shape)) / 4
            if stacked:
                out[f"{head}experts.{name}"] = weights
            else:
                out |= {f"{head}experts.{e}.{name}.weight": weights[e] for e in range(experts)}
            out[f"{head}shared_experts.{name}.weight"] = rng.normal(size=shape) / 4
    return {name: value.astype("<f4") for name, value in out.items()}


def forward(weights: dict[str, np.ndarray], x: np.ndarray, *, layers: int = 2, groups: int = 1) -> np.ndarray:
    """Output of the tiny model for tokens x [token, hidden]: the best two experts of the best group, and the shared."""
    for layer in range(layers):
        head = f"model.layers.{layer}.mlp."
        stacked = head + "router.weight" in weights
        router = head + ("router" if stacked else "gate")
        score = 1 / (1 + np.exp(-(x @ weights[router + ".weight"].T)))
        bias = weights[router + (".bias" if stacked else ".e_score_correction_bias")]
        choice = score + bias
        size = choice.shape[1] // groups
        best = choice.reshape(len(x), groups, size).max(axis=2).argmax(axis=1)
        choice = np.where(np.arange(choice.shape[1]) // size == best[:, None], choice, -np.inf)
        out = np.stack([_expert(weights, head + "shared_experts.", None, row) for row in x])
        for t, row in enumerate(x):
            for e in np.argsort(-choice[t])[:2].tolist():
                out[t] = out[t] + score[t, e] * _expert(weights, head + "experts.", e, row)
        x = x + out
    return x


def _expert(weights: dict[str, np.ndarray], head: str, number: int | None, x: np.ndarray) -> np.ndarray:
    def get(name: str) -> np.ndarray:
        if number is None:
            return weights[f"{head}{name}.weight"]
        one = f"{head}{number}.{name}.weight"
        return weights[one] if one in weights else weights[head + name][number]

    gate, up = get("gate_proj") @ x, get("up_proj") @ x
    out: np.ndarray = get("down_proj") @ (gate / (1 + np.exp(-gate)) * up)
    return out


def self_test(folder: Path, *, experts: int = 8, seed: int = 0) -> float:
    """Largest change of a tiny model's output under a drawn permutation, over both ways to store experts."""
    rng = np.random.default_rng(seed)
    worst = 0.0
    for stacked in (False, True):
        source, target = folder / f"in-{stacked}", folder / f"out-{stacked}"
        source.mkdir()
        weights = tiny_model(rng, experts=experts, stacked=stacked)
        write_tensors(source / "model.safetensors", weights)
        orders = {layer: rng.permutation(experts).tolist() for layer in range(2)}
        permute(source, target, orders)
        x = rng.normal(size=(16, 8))
        changed = forward(read_tensors(target / "model.safetensors"), x) - forward(weights, x)
        worst = max(worst, float(np.abs(changed).max()))
    return worst


def main(words: list[str]) -> int:
    """The command line."""
    if words == ["--self-test"]:
        import tempfile

        with tempfile.TemporaryDirectory() as folder:
            worst = self_test(Path(folder))
        print(f"largest change of the tiny model's output: {worst:g}")
        return 0 if worst == 0.0 else 1
    if len(words) != 3 or words[0].startswith("-"):
        print(__doc__)
        return 2
    try:
        count = permute(words[0], words[1], read_permutation(words[2]))
    except (Refused, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"wrote and verified {count} files in {words[1]}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
