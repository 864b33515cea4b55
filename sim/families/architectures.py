"""Whether the classes that a config.json names are those of its model_type.

A class is known by its name without what it is for (`MixtralForCausalLM` -> mixtral), spelled as a known model_type. A
class that is not known contradicts nothing: wrappers and authors' own code have names of their own.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

# What a class is for, behind the name of its family.
_PURPOSE = re.compile(r"(For[A-Z]\w*|LMHeadModel|Model)$")
# Published files whose classes bear the name of another type that reads the same.
ALSO: Mapping[str, tuple[str, ...]] = {
    "kimi_k2": ("deepseek_v3",),
    "mistral": ("llama",),
    "ministral": ("mistral",),
    "llama": ("mistral",),
}


def _plain(name: str) -> str:
    return name.replace("_", "").casefold()


def type_of_class(name: str, known: Iterable[str]) -> str | None:
    """The known model_type that a class belongs to, None where it is of none.

    >>> type_of_class("Qwen3MoeForCausalLM", ("qwen3", "qwen3_moe"))
    'qwen3_moe'
    """
    stem = _plain(_PURPOSE.sub("", name))
    return next((kind for kind in known if _plain(kind) == stem), None)


def contradicting_classes(data: Mapping[str, object], known: Iterable[str], same_as: Mapping[str, str]) -> list[str]:
    """What to say of every class in `architectures` that belongs to another known type than `model_type`."""
    kind, names = data.get("model_type"), data.get("architectures")
    if not isinstance(kind, str) or not isinstance(names, list):
        return []
    known, mine = tuple(known), same_as.get(kind, kind)
    if mine not in known:
        return []
    out = []
    for name in names:
        other = type_of_class(name, known) if isinstance(name, str) else None
        if other is not None and same_as.get(other, other) not in (mine, *ALSO.get(kind, ())):
            out.append(f"architectures names {name[:60]}, a class of {other}, but model_type is {kind!r}: correct one")
    return out
