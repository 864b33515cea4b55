"""The memory ledger of one lane: bytes in use by tag over time, and what the peak is made of."""

from __future__ import annotations

from collections.abc import Iterable, Mapping


class Ledger:
    """Starts with the static bytes; records every change of the total, and the tags at the peak."""

    def __init__(self, static_bytes: Mapping[str, float]) -> None:
        self._tags = dict(static_bytes)
        self._total = sum(static_bytes.values())
        self._steps: list[tuple[float, float]] = [(0.0, self._total)]
        self._peak_total = self._total
        self._peak_tags = dict(static_bytes)

    def alloc(self, now_s: float, amounts: Iterable[tuple[str, float]]) -> None:
        """Take bytes at time now_s."""
        tags = self._tags
        for tag, size in amounts:
            tags[tag] = tags.get(tag, 0.0) + size
            self._total += size
        if self._total > self._peak_total:
            self._peak_total = self._total
            self._peak_tags = dict(tags)
        self._note(now_s)

    def free(self, now_s: float, amounts: Iterable[tuple[str, float]]) -> None:
        """Give bytes back at time now_s."""
        tags = self._tags
        for tag, size in amounts:
            tags[tag] = tags.get(tag, 0.0) - size
            self._total -= size
        self._note(now_s)

    def _note(self, now_s: float) -> None:
        steps = self._steps
        if steps[-1][0] == now_s:
            steps.pop()
        if not steps or steps[-1][1] != self._total:
            steps.append((now_s, self._total))

    def steps(self) -> tuple[tuple[float, float], ...]:
        """(time_s, bytes in use from then on), only where it changes."""
        return tuple(self._steps)

    def peak(self) -> dict[str, float]:
        """Bytes by tag at the moment of the highest total."""
        return dict(self._peak_tags)
