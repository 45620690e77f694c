"""Tests run against the installed package, never against the source tree that lies beside them."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

ROOT = Path(__file__).resolve().parents[1]

# The source tree has no native modules. `python -m pytest` puts the current directory, usually that tree, first on the
# import path, and so would every Python process that a test starts.
sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != ROOT]
os.environ["PYTHONSAFEPATH"] = "1"

# On a core shared with a compiler, limits on time only make tests fail at random.
# The README's command answers the same every time; `--hypothesis-profile=explore` draws new examples.
settings.register_profile("explore", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("repository", settings.get_profile("explore"), derandomize=True)
settings.load_profile("repository")


def pytest_configure() -> None:
    package = importlib.util.find_spec("cascadia_fast")
    if package is None:
        pytest.exit("cascadia_fast is not installed in this environment; run: pip install '.[test]'", returncode=4)
    if importlib.util.find_spec("cascadia_fast._core") is None:
        pytest.exit(
            f"cascadia_fast was found at {package.origin}, which has no native core: a source tree shadows the "
            "installed package; run pytest in the environment where pip install '.[test]' was run",
            returncode=4,
        )


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the checkout the tests lie in."""
    return ROOT
