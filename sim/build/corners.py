"""The few among many vectors of counts at which a sum of their entries, each at some price, can be largest."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]

MAX_BITS = 62  # of a number that stands for a vector
MOST_PAIRED = 1 << 11  # more vectors than this are not compared each with each


def corners(points: Ints) -> Ints:
    """Rows of `points` [n, entries >= 0] that suffice, whatever the prices, none of them negative; in rising order.

    A row that another one reaches or exceeds in every entry cannot be the only largest, nor can one that lies halfway
    between two others.
    """
    codes = _codes(points)
    if codes is None:
        points = np.unique(points, axis=0)
    else:
        codes, first = np.unique(codes, return_index=True)
        points = points[first]
    before = len(points) + 1
    while len(points) < before:  # a row often lies below the next one: those go first, in one look
        before = len(points)
        kept = np.append(~(points[1:] >= points[:-1]).all(axis=1), True)
        points, codes = points[kept], None if codes is None else codes[kept]
    if len(points) == 1 or len(points) > MOST_PAIRED:
        return points
    covers = np.ones((len(points), len(points)), dtype=bool)
    for entry in points.T:
        covers &= entry[:, None] >= entry[None, :]
    kept = covers.sum(axis=0) == 1
    points = points[kept]
    if codes is None or len(points) < 3:
        return points
    codes = codes[kept]
    # p lies between q and r where 2 p - q = r; entries of 2 p - q do not run into each other (`_codes`)
    mirrored = 2 * codes[:, None] - codes[None, :]
    np.fill_diagonal(mirrored, -1)
    place = np.searchsorted(codes, mirrored)
    between = (codes[np.minimum(place, len(codes) - 1)] == mirrored).any(axis=1)
    found: Ints = points[~between]
    return found


def _codes(points: Ints) -> Ints | None:
    """A number for each row, in the order of rows; entries from -most to 2 most have room (None where there is none
    for that)."""
    most = int(points.max(initial=0))
    bits = (3 * most + 1).bit_length()
    if bits * points.shape[1] > MAX_BITS:
        return None
    codes = np.zeros(len(points), dtype=np.int64)
    for entry in points.T:
        codes = (codes << bits) + (entry + most)
    return codes
