"""Quantity strings: exact factors, strict errors."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hwprofiles.errors import UserError
from hwprofiles.units import UNITS, quantity, unit_of

KNOWN = [
    ("80 GiB", "B", 80 * 2**30),
    ("80 GB", "B", 80e9),
    ("141GB", "B", 141e9),
    ("400 Gb/s", "B/s", 50e9),
    ("400 Gbit/s", "B/s", 50e9),
    ("400 Gbps", "B/s", 50e9),
    ("3.35 TB/s", "B/s", 3.35e12),
    ("5 us", "s", 5e-6),
    ("2.5 ms", "s", 2.5e-3),
    ("3.6 USD/h", "USD/s", 1e-3),
    ("989 TFLOP/s", "FLOP/s", 989e12),
    ("1_000 W", "W", 1000.0),
    ("0 us", "s", 0.0),
    ("12 %", "1", 0.12),
]


@pytest.mark.parametrize(("text", "unit", "value"), KNOWN)
def test_known_quantities_are_exact(text: str, unit: str, value: float) -> None:
    assert quantity(text, unit) == value


@pytest.mark.parametrize(
    ("read", "unit", "says"),
    [
        ("80", "B", "unit is missing"),
        ("80 gib", "B", "did you mean 'GiB'"),
        ("400 GB", "B/s", "is B, but B/s is needed"),
        ("400 Gb/s", "B", "is B/s, but B is needed"),
        ("nan us", "s", "finite"),
        ("inf s", "s", "finite"),
        ("1e999 s", "s", "finite"),
        ("-5 us", "s", "zero or more"),
        ("fast", "B/s", "not a number"),
        ("", "s", "not a number"),
        ("5 5 us", "s", "unknown unit"),
        (math.nan, "s", "finite"),
        (-math.inf, "s", "finite"),
        (-1, "B", "zero or more"),
        (10**400, "B", "finite"),
        (True, "B", "bool"),
        (None, "B", "NoneType"),
        ([1], "B", "list"),
    ],
)
def test_errors_name_what_was_read_and_what_is_accepted(read: object, unit: str, says: str) -> None:
    with pytest.raises(UserError) as caught:
        quantity(read, unit)
    assert says in str(caught.value)
    assert repr(read)[:20] in str(caught.value)


@given(st.sampled_from(sorted(UNITS)), st.data(), st.floats(min_value=0, max_value=1e6))
def test_value_scales_with_its_unit(unit: str, data: st.DataObject, amount: float) -> None:
    spelling = data.draw(st.sampled_from(sorted(UNITS[unit])))
    assert quantity(f"{amount!r} {spelling}", unit) == pytest.approx(amount * UNITS[unit][spelling], rel=1e-12)


@given(st.sampled_from(sorted(UNITS)), st.floats(min_value=0, max_value=1e300))
def test_a_number_is_si_already(unit: str, amount: float) -> None:
    assert quantity(amount, unit) == amount


@given(st.text(max_size=20), st.sampled_from(sorted(UNITS)))
def test_any_text_gives_a_finite_amount_or_a_user_error(text: str, unit: str) -> None:
    try:
        amount = quantity(text, unit)
    except UserError:
        return
    assert math.isfinite(amount)
    assert amount >= 0


def test_bits_are_an_eighth_of_bytes_and_prefixes_are_powers() -> None:
    table = UNITS["B"]
    for spelling, factor in table.items():
        if spelling.endswith("b"):
            assert factor * 8 == table[spelling[:-1] + "B"]
    assert table["GiB"] == table["KiB"] ** 3
    assert table["GB"] == table["kB"] ** 3


@pytest.mark.parametrize(
    ("field", "unit"),
    [
        ("mem_bytes", "B"),
        ("mem_bytes_per_s", "B/s"),
        ("peak_flop_per_s", "FLOP/s"),
        ("launch_s", "s"),
        ("usd_per_s", "USD/s"),
        ("power_w", "W"),
        ("host_speed", "1"),
        ("num_sms", "1"),
    ],
)
def test_the_suffix_of_a_field_gives_its_unit(field: str, unit: str) -> None:
    assert unit_of(field) == unit
