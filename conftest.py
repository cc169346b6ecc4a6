"""Tests compute on one thread: on tiny models a second one only waits, and spins while it does.

It is set before torch loads, and for the commands that tests start; OMP_NUM_THREADS overrides it.
"""

import os

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

# Its tests take longest, and need nothing of each other.
_FIRST = "test_readme.py"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """With several workers, a file's tests share one, and with it what is made once.

    Documents go first, each where there is room, so that no worker is left alone with them.
    """
    if not config.pluginmanager.hasplugin("xdist"):
        return
    items.sort(key=lambda item: item.path.name != _FIRST)
    for item in items:
        group = item.nodeid if item.path.name == _FIRST else str(item.path)
        item.add_marker(pytest.mark.xdist_group(group))


@pytest.fixture(autouse=True)
def _same_numbers_in_every_run() -> None:
    torch.manual_seed(0)
