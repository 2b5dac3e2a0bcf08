"""Pages whose examples compile much are slow tests; those of index.md are the README's, too."""

from pathlib import Path

import pytest

SLOW = {"choose.md", "index.md", "recipes.md", "troubleshooting.md"}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Mark them before `-m` chooses."""
    for item in items:
        if item.path.parent == Path(__file__).parent and item.path.name in SLOW:
            item.add_marker(pytest.mark.slow)
