"""What child processes do to a ledger in tests; see ``store_children`` for how they are started."""

import itertools
import os
import shutil
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from brickwork.update.ledger import Ledger
from tests.sham_edits import linear_edit
from tests.store_children import _say

_STEPS = {"open", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.scandir"}
State = list[tuple[str, str, tuple[str, ...]]]


def prepare(folder: Path) -> None:
    """A ledger with a batch of three facts and an edit of one."""
    ledger = Ledger.create(folder, linear_edit().record.base)
    ledger.add(linear_edit(("sky", "sea", "sun"), 1, method="memit"))
    ledger.add(linear_edit(("moon",), 2))


def deeds(folder: Path) -> Iterator[object]:
    """Every kind of change to a prepared ledger, one after the other."""
    ledger = Ledger.open(folder)
    yield ledger.revoke("0001-memit", "sea")
    yield ledger.disable("0002-rome")
    yield ledger.add(linear_edit(("star",), 3))
    yield ledger.revoke("0002-rome")
    yield ledger.revoke("0001-memit", "sky")


def kill_at_steps(root: Path, stops: Sequence[int]) -> None:
    """Do the deeds to copies of the ledger ``prepared``, each killed before another step.

    A step is a look at the file system or a change of it. The copy for step 3 is ``killed-3``, and
    what it acknowledged is in ``log-3``. This process has one thread, so forking it is safe.
    """
    for stop in stops:
        folder, log = root / f"killed-{stop}", root / f"log-{stop}"
        shutil.copytree(root / "prepared", folder)
        _in_fork([lambda folder=folder, log=log, stop=stop: _stop_at_step(folder, log, stop)])


def add_at_once(folder: Path, processes: int, count: int) -> None:
    """Let so many processes add so many edits each, all at the same time."""
    _in_fork([lambda seed=seed: _add_some(folder, seed, count) for seed in range(processes)])


def state_of(folder: Path) -> State:
    """What a ledger says: ids, states and facts."""
    ledger = Ledger.open(folder)
    return [
        (entry.id, entry.state, tuple(f.id for f in ledger.edit(entry.id).record.facts))
        for entry in ledger.entries
    ]


def _stop_at_step(folder: Path, log: Path, stop: int) -> None:
    steps = itertools.count()

    def count(event: str, _: object) -> None:
        if event in _STEPS and next(steps) == stop:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)
    for _ in deeds(folder):
        _say(log, "done")
    _say(log, f"steps {next(steps)}")


def _add_some(folder: Path, seed: int, count: int) -> None:
    ledger = Ledger.open(folder)
    for number in range(count):
        ledger.add(linear_edit((f"fact {seed} {number}",), 100 * seed + number))


def _in_fork(work: Sequence[Callable[[], None]]) -> None:
    """Let each piece of work have a process of its own, and wait for all."""
    children = []
    for piece in work:
        child = os.fork()
        if child == 0:
            try:
                piece()
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        children.append(child)
    for child in children:
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert status in {0, -signal.SIGKILL}
