"""Fixtures of the dashboard tests."""

from __future__ import annotations

import pytest

from sim.report import Report
from tests.dashboards.handmade import make_report


@pytest.fixture
def report() -> Report:
    """Four stages, eight micro-batches."""
    return make_report()
