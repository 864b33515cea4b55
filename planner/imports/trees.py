"""Trees of settings that others wrote: YAML and JSON, bounded, without aliases, tags or code."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from hwprofiles.errors import UserError
from planner.imports.shell_words import read_text

MAX_DEPTH = 64


def read_tree(path: str) -> dict[str, Any]:
    """The mapping of a YAML or JSON file (told by the name, else by the first sign).

    Raises UserError where it is larger than 1 MiB, has aliases (an entity bomb of YAML), is nested deeper than
    MAX_DEPTH, or is no mapping.
    """
    text = read_text(path)
    as_json = path.endswith(".json") or text.lstrip()[:1] == "{"
    tree = _json(text, path) if as_json else yaml_of(text, path)
    if not isinstance(tree, dict) or not all(isinstance(key, str) for key in tree):
        raise UserError("holds no mapping of sections; give the file of settings itself", where=path)
    return tree


def _json(text: str, path: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"not JSON: {str(error)[:80]}", where=path) from None


def yaml_of(text: str, path: str) -> Any:
    """What a YAML text holds. Raises UserError for aliases, for nesting beyond MAX_DEPTH and for what is no YAML."""
    import yaml

    try:
        depth = 0
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            if isinstance(event, yaml.AliasEvent):
                raise UserError("refused: it has aliases; write the values out", where=path)
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > MAX_DEPTH:
                raise UserError(f"refused: nested deeper than {MAX_DEPTH} levels", where=path)
        return yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise UserError(f"not YAML: {str(error).splitlines()[0][:80]}", where=path) from None


def section(tree: Mapping[str, Any], name: str, problems: list[str]) -> dict[str, Any]:
    """A section of the tree, empty where it is left out; one that is no mapping is a problem."""
    found = tree.get(name)
    if found is None:
        return {}
    if not isinstance(found, dict):
        problems.append(f"{name} is {str(found)[:40]!r}, not a mapping; write its keys under it")
        return {}
    return found
