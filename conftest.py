"""Tests compute on one thread: on tiny models a second one only waits, and spins while it does.

It is set before torch loads, and for the commands that tests start; OMP_NUM_THREADS overrides it.
"""

import os

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The documents first: they take longest, and no worker shall be left alone with them."""
    items.sort(key=lambda item: item.path.name != "test_readme.py")


@pytest.fixture(autouse=True)
def _same_numbers_in_every_run() -> None:
    torch.manual_seed(0)
