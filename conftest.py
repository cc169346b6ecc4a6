"""Tests compute on one thread: on tiny models a second one only waits, and spins while it does.

It is set before torch loads, and for the commands that tests start; OMP_NUM_THREADS overrides it.
"""

import os

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch


@pytest.fixture(autouse=True)
def _same_numbers_in_every_run() -> None:
    torch.manual_seed(0)
