"""A store outlives kill -9 at any moment: nothing acknowledged is lost, nothing is damaged."""

import random
import shutil
import signal
import time
from pathlib import Path

import pytest

from brickwork.store.store import Store
from tests.store_children import add_until_killed, context, said, small_brick, stop_at_step


def kill_and_look(folder: Path, log: Path, seed: int, chance: random.Random) -> None:
    """Kill a child after a random number of acknowledged deeds and a little more."""
    child = context().Process(target=add_until_killed, args=(folder, log, seed))
    goal = len(said(log, "added")) + chance.randrange(4)
    child.start()
    while len(said(log, "added")) < goal and child.is_alive():
        time.sleep(0.002)
    time.sleep(chance.uniform(0, 0.1))
    child.kill()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    with Store.open(folder) as store:
        assert store.verify() == []
        removed = {content for (content,) in said(log, "removing")}
        for (content,) in said(log, "added"):
            if content not in removed:
                assert store.get(f"sha256:{content}").hash == content


def survive(folder: Path, log: Path, kills: int, seed: int) -> None:
    chance = random.Random(seed)
    for number in range(kills):
        kill_and_look(folder, log, number, chance)
    assert len(said(log, "added")) > kills
    with Store.open(folder) as store:
        store.collect(0)
        assert list((folder / "temp").iterdir()) == []
        assert store.verify() == []
        assert {e.hash for e in store.list(deleted=True)} == {
            path.name for path in (folder / "objects").glob("??/*")
        }


def test_survives_being_killed_at_random_moments(tmp_path: Path) -> None:
    survive(tmp_path / "store", tmp_path / "log", kills=15, seed=1)


@pytest.mark.slow
def test_survives_being_killed_very_often(tmp_path: Path) -> None:
    survive(tmp_path / "store", tmp_path / "log", kills=150, seed=2)


@pytest.fixture
def prepared(tmp_path: Path) -> Path:
    """A store with a brick to remove and a removed one, and an archive with one of its own."""
    with Store.open(tmp_path / "other") as other:
        other.add(small_brick("imported", 3))
        other.add(small_brick("old", 1))
        other.export(["imported", "old"], tmp_path / "archive")
    with Store.open(tmp_path / "store") as store:
        store.add(small_brick("old", 1))
        store.add(small_brick("back", 2))
        store.remove("back")
    return tmp_path


def run_to_step(root: Path, stop: int) -> Path:
    """Kill a child right before its step ``stop``, look at what it left, and return its log."""
    folder, log = root / f"store-{stop}", root / f"log-{stop}"
    shutil.copytree(root / "store", folder)
    child = context().Process(target=stop_at_step, args=(folder, root / "archive", log, stop))
    child.start()
    child.join()
    assert child.exitcode == (0 if said(log, "steps") else -signal.SIGKILL)
    with Store.open(folder) as store:
        assert store.verify() == []
        for (content,) in said(log, "added"):
            assert store.get(f"sha256:{content}").hash == content
        if said(log, "added"):
            assert not store.entry("back").deleted
        store.collect(0)
        assert list((folder / "temp").iterdir()) == []
        assert store.verify() == []
        store.add(small_brick("fresh", 7))
        assert len(store.import_archive(root / "archive")) == 2
        assert store.verify() == []
    return log


def number_of_steps(root: Path) -> int:
    return int(said(run_to_step(root, 1_000_000), "steps")[0][0])


def test_survives_being_killed_at_some_steps(prepared: Path) -> None:
    steps = number_of_steps(prepared)
    assert steps > 100
    for stop in random.Random(3).sample(range(steps), 12):
        assert not said(run_to_step(prepared, stop), "steps")


@pytest.mark.slow
def test_survives_being_killed_at_every_step(prepared: Path) -> None:
    for stop in range(number_of_steps(prepared)):
        assert not said(run_to_step(prepared, stop), "steps")
