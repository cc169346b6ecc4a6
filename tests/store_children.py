"""What child processes do to a store in tests, and the small bricks they do it with.

Children are forked from one server that has torch loaded, so that starting one is quick and
killing it at any moment is cheap.
"""

import contextlib
import itertools
import multiprocessing
import os
import random
import signal
import sys
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import torch

from brickwork.brick.brick import Brick
from brickwork.brick.spec import Function
from brickwork.errors import UnknownNameError
from brickwork.store.store import Store
from tests.bricks import paper_base, random_brick

BASE = paper_base(layers=1)
SITE = "model.layers.0.self_attn.q_proj"
_STEPS = {"open", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.scandir"}


def small_brick(name: str, seed: int = 0, **spec: Any) -> Brick:
    """A LoRA brick of a few hundred bytes; another seed is another content."""
    generator = torch.Generator().manual_seed(seed)
    fields = {"function": Function(text=f"content {seed}"), **spec}
    return random_brick("lora", BASE, generator, sites=[SITE], name=name, **fields)


def context() -> ForkServerContext:
    """The context in which ``Process`` runs the functions of this module."""
    found = multiprocessing.get_context("forkserver")
    found.set_forkserver_preload(["tests.store_children", "brickwork.brick.folder"])
    return found


def add_until_killed(folder: Path, log: Path, seed: int) -> None:
    """Add, tag, remove and collect without end; every acknowledged deed is a line of the log."""
    chance = random.Random(seed)
    with Store.open(folder) as store:
        for number in itertools.count(seed * 1_000_000):
            entry = store.add(small_brick(f"name-{chance.randrange(3)}", number), tags=["new"])
            _say(log, f"added {entry.hash}")
            if chance.random() < 0.3:
                store.tag(entry.reference, "tagged")
            if chance.random() < 0.3:
                _say(log, f"removing {entry.hash}")
                store.remove(entry.reference)
            if chance.random() < 0.2:
                store.collect(0)


def stop_at_step(folder: Path, archive: Path, log: Path, stop: int) -> None:
    """Add, remove, collect and import; kill this process right before its step ``stop``.

    A step is a change of the file system or a statement of SQL.
    """
    steps = itertools.count()

    def count(*_: object) -> None:
        if next(steps) == stop:
            os.kill(os.getpid(), signal.SIGKILL)

    with Store.open(folder) as store:
        store._catalog._connection.set_trace_callback(count)
        sys.addaudithook(lambda event, _: count() if event in _STEPS else None)
        store.restore("back")
        entry = store.add(small_brick("fresh", 7), tags=["new"])
        _say(log, f"added {entry.hash}")
        store.remove("old")
        store.collect(0)
        for entry in store.import_archive(archive):
            _say(log, f"added {entry.hash}")
        _say(log, f"steps {next(steps)}")


def race(folder: Path, log: Path, seed: int, rounds: int = 12) -> None:
    """Add own bricks, which nobody removes, and quarrel over shared ones, which anybody does."""
    chance = random.Random(seed)
    with Store.open(folder) as store:
        for number in range(rounds):
            entry = store.add(small_brick(f"own-{seed}", number))
            _say(log, f"added {entry.hash} {entry.reference}")
            shared = small_brick("shared", chance.randrange(4))
            entry = store.add(shared)
            _say(log, f"shared {entry.hash} {entry.reference}")
            with contextlib.suppress(UnknownNameError):  # the other one may have been quicker
                store.remove(f"shared@{chance.randrange(1, entry.version + 1)}")
            store.collect(0)


def said(log: Path, word: str) -> list[list[str]]:
    """What the lines of a log that begin with ``word`` say after it."""
    lines = [line.split() for line in log.read_text().splitlines()] if log.exists() else []
    return [line[1:] for line in lines if line[0] == word]


def _say(log: Path, line: str) -> None:
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(descriptor, f"{line}\n".encode())
    os.close(descriptor)
