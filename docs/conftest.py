"""Pages whose examples compile much are slow tests."""

from pathlib import Path

import pytest

SLOW = {"recipes.md"}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Mark them before `-m` chooses."""
    for item in items:
        if item.path.parent == Path(__file__).parent and item.path.name in SLOW:
            item.add_marker(pytest.mark.slow)
