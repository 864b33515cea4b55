"""What all tests share: one hypothesis profile.

Tests of the measuring harness skip by themselves where torch is missing (`pytest.importorskip`).
"""

from __future__ import annotations

from hypothesis import HealthCheck, settings

# Same examples on every machine and no limit by the clock: a test fails for what it finds only.
settings.register_profile(
    "moecast", deadline=None, derandomize=True, print_blob=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("moecast")
