"""How a run's tokens were routed: forced balance, as vendor benchmarks run, or as the router chose."""

from __future__ import annotations

from collections.abc import Mapping

from sim.model import ModelSpec
from sim.routing import Routing
from sim.routing.spec import CONSECUTIVE, FORCED, parse_routing, resolve

# Runs that state natural routing without counts get the popularity of the only record that covers whole models.
NATURAL = "like:mixtral-8x7b"

# NeMo AutoModel's stand-in for a router (`FakeBalancedGate`) numbers a token's k experts in sequence.
FAKE_GATE = "fake balanced gate"


def routing_of(row: Mapping[str, str], model: ModelSpec, assumed: dict[str, str]) -> Routing:
    """Loads of a run from its `routing` cell: words, or anything `--routing` takes; empty: forced balance.

    Natural routing without counts takes `NATURAL`, noted in `assumed`. Raises UserError on a `--routing` text that
    cannot be read.
    """
    text = row.get("routing", "").strip()
    if not model.is_moe or not text:
        return Routing()
    if "natural" in text.lower():
        assumed["routing"] = NATURAL
        return resolve(parse_routing(NATURAL), model)
    if FAKE_GATE in text.lower():
        return resolve(parse_routing(CONSECUTIVE), model)
    words = (FORCED, "token-drop", "fake", "dropless", "not stated", "force")
    if any(text.lower().startswith(word) for word in words):
        return Routing()
    return resolve(parse_routing(text), model)
