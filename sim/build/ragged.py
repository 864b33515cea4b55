"""Forms of pipelines as parallel arrays, several laid end to end, for sums over lists of unequal length."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Lists:
    """The forms of one pipeline, or of several one after the other, as parallel arrays.

    stages: (stage, buckets, activations and gradients sent, content of chunk 0); terms: counts as in `forms.Term`;
    late: of each term, `drain_wgrad`; moments: (kept stage, running content); held: (content, micro-batches), held_as:
    the row of prices that says of what. opens_term and opens_held mark the first entry of a stage and of a moment.
    """

    stages: Ints
    terms: Ints
    term_content: Ints
    late: Ints
    opens_term: NDArray[np.bool_]
    moments: Ints
    held: Ints
    held_as: Ints
    opens_held: NDArray[np.bool_]


class Spans:
    """Ragged lists laid end to end: list p has sizes[p] entries."""

    def __init__(self, sizes: Sequence[int]) -> None:
        self._size = np.array(sizes, dtype=np.int64)
        self._first = np.cumsum(self._size) - self._size

    def starts(self, which: Any) -> Any:
        """Where each row begins once the rows' lists are laid end to end."""
        size = self._size[which]
        return np.cumsum(size) - size

    def of(self, which: Any) -> tuple[Any, Any]:
        """(row, entry) of all entries of the lists which[0], which[1], ... in order."""
        size = self._size[which]
        row = np.repeat(np.arange(len(which)), size)
        return row, np.arange(len(row)) + (self._first[which] - (np.cumsum(size) - size))[row]


def joined(found: Sequence[Lists]) -> tuple[Lists, dict[str, Spans]]:
    """Several pipelines laid end to end, and where each one's entries are."""
    names = ("stages", "terms", "term_content", "late", "opens_term", "moments", "held", "held_as", "opens_held")
    joined = {name: np.concatenate([getattr(each, name) for each in found], axis=-1) for name in names}
    spans = {
        name: Spans([getattr(each, name).shape[-1] for each in found])
        for name in ("stages", "terms", "moments", "held")
    }
    return Lists(**joined), spans
