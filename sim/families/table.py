"""The page of families and models: `python -m sim.families.table > docs/reference/models.md`."""

from __future__ import annotations

import sys

from sim.families.catalogue import catalogue_model, model_names, public_counts
from sim.families.hf import READERS, SAME_AS
from sim.model import ModelSpec, active_params, total_params

HEAD = """# Models and families

Written by `python -m sim.families.table`; a test keeps it current.

## Families read from a `config.json`

By `model_type`; names in brackets are other spellings of the same.

{families}

## Models of the catalogue

Parameters in billions: all, and those one token uses. "public" is the published total the count is held against, to
0.5 %, and by how much it differs; where the published figure is too coarse for that it is left out. Layers: A full,
C chunked, W windowed attention, S sparse (indexer), L latent (MLA), E all compressed entries behind a window, M mixer
without softmax.

| model | family | layers | total | active | public | differs | source of the public figure |
|---|---|---|---|---|---|---|---|
"""


def layers_text(model: ModelSpec) -> str:
    """Number of layers, and how many mix tokens in which way."""
    kinds: dict[str, int] = {}
    for layer in model.layers:
        att = layer.attention
        if layer.mixer is not None:
            key = f"M ({layer.mixer.kind})"
        elif att.kind == "none":
            continue
        else:
            key = (
                "S"
                if att.index_topk
                else "E"
                if att.compress_rate
                else "C"
                if att.chunk
                else "W"
                if att.window
                else "A"
            )
            key = "L" if att.kind == "mla" and key == "A" else key
        kinds[key] = kinds.get(key, 0) + 1
    return f"{len(model.layers)}: " + ", ".join(f"{n} {key}" for key, n in kinds.items())


def page() -> str:
    """The whole page."""
    other: dict[str, list[str]] = {}
    for spelling, kind in SAME_AS.items():
        other.setdefault(kind, []).append(spelling)
    names = [
        f"`{kind}`" + (f" ({', '.join(sorted(other[kind]))})" if kind in other else "") for kind in sorted(READERS)
    ]
    lines = []
    for name in model_names():
        model, counts = catalogue_model(name), public_counts(name)
        total, active = total_params(model), active_params(model)
        public = differs = source = ""
        if counts is not None and counts.total_params:
            public, source = f"{counts.total_params / 1e9:.4g}", counts.source
            differs = f"{100.0 * (total / counts.total_params - 1.0):+.2f} %"
        cells = (name, model.family, layers_text(model), f"{total / 1e9:.4g}", f"{active / 1e9:.4g}")
        lines.append("| " + " | ".join((*cells, public, differs, source)) + " |")
    return HEAD.format(families=", ".join(names)) + "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.stdout.write(page())
