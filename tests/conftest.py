"""What all tests share: a fixed hypothesis profile, and the skip of harness tests where torch is missing."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# Same examples on every machine and no limit by the clock: a test fails for what it finds only.
settings.register_profile(
    "moecast", deadline=None, derandomize=True, print_blob=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("moecast")

HAS_TORCH = importlib.util.find_spec("torch") is not None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Only tests of the measuring harness (tests/calibration/**/test_harness*.py) may lack torch."""
    if HAS_TORCH:
        return
    skip = pytest.mark.skip(reason="torch is not installed (extra [calibrate]): the measuring harness is not tested")
    for item in items:
        path = Path(str(item.path))
        if "calibration" in path.parts and ("harness" in path.parts or path.name.startswith("test_harness")):
            item.add_marker(skip)
