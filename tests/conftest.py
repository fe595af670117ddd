"""What every test shares: Hypothesis runs that repeat, and an environment without the person's own settings.

The default profile tries the same examples every time, so a change is judged by the same tests before and
after; `scripts/soak` looks for new ones with `--hypothesis-profile=soak`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from tests.ceph import ceph

__all__ = ["ceph"]

# No deadline for one example: on a machine shared with other processes it would measure them.
settings.register_profile("default", deadline=None, derandomize=True)
settings.register_profile(
    "soak",
    deadline=None,
    derandomize=False,
    max_examples=5000,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("default")


@pytest.fixture(scope="session", autouse=True)
def no_settings_from_outside() -> Iterator[None]:
    """Every `RAFTKV_*` variable is a setting of a node: none may leak into the nodes that tests start."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("RAFTKV_")]:
            patch.delenv(name)
        yield
