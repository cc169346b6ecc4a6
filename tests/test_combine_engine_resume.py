"""A merge that is killed, refused or started twice: nothing at the target, and no work lost."""

import errno
import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from brickwork.combine import engine, workshop
from brickwork.combine.engine import Extras, write_merge
from brickwork.combine.plan import MergePlan, ModelRef
from brickwork.errors import MergeError
from tests.combine import plan_of, write_model

SHAPES = {f"layer.{number}": (64, 32) for number in range(12)}
LINEAR = {"weight": (1.0, 3.0), "normalize": True}
PLACE = ".brickwork-merge-out"
# Merges with a journal line for each tensor, and stops for good at the seventh.
PROGRAM = """
import sys, time
from pathlib import Path
from brickwork.combine import engine
from tests.combine import plan_of
from brickwork.combine.plan import ModelRef
from tests.test_combine_engine_resume import LINEAR, SHAPES
engine._SYNC_BYTES = 0
place = Path(sys.argv[1])
refs = [ModelRef(str(place / name)) for name in ("m0", "m1")]
done = []
def advance(size):
    if size:
        done.append(size)
    if len(done) == 7:
        print("seven", flush=True)
        time.sleep(60)
engine.write_merge(plan_of(refs, SHAPES, "linear", parameters=LINEAR), place / "out",
                   workers=1, advance=advance)
"""


def plan_in(place: Path, *, weight: tuple[float, float] = (1.0, 3.0)) -> MergePlan:
    """A merge of two models, which are written if they are not there."""
    refs = []
    for seed in range(2):
        chance = torch.Generator().manual_seed(seed)
        tensors = {n: torch.randn(s, generator=chance) for n, s in SHAPES.items()}
        folder = place / f"m{seed}"
        refs.append(ModelRef(str(folder)) if folder.exists() else write_model(folder, tensors))
    return plan_of(refs, SHAPES, "linear", parameters={"weight": weight, "normalize": True})


def stop_after(tensors: int, place: Path, plan: MergePlan) -> None:
    """A run that is interrupted when so many tensors are done."""
    seen = []

    def advance(size: int) -> None:
        seen.extend([size] * bool(size))
        if len(seen) == tensors:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_merge(plan, place / "out", workers=1, advance=advance)


def test_a_killed_run_leaves_nothing_and_the_next_goes_on(tmp_path: Path) -> None:
    plan = plan_in(tmp_path)
    root = Path(__file__).parents[1]
    run = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(tmp_path)], cwd=root, stdout=subprocess.PIPE
    )
    assert run.stdout is not None
    assert run.stdout.readline() == b"seven\n"
    with pytest.raises(MergeError, match=r"another merge to .*is at work; wait for it"):
        write_merge(plan, tmp_path / "out")
    run.send_signal(signal.SIGKILL)
    run.wait()
    run.stdout.close()
    assert not (tmp_path / "out").exists()
    summary = write_merge(plan, tmp_path / "out")
    assert 6 <= summary.resumed < len(SHAPES)
    write_merge(plan, tmp_path / "whole")
    resumed, whole = (tmp_path / name / "model.safetensors" for name in ("out", "whole"))
    assert resumed.read_bytes() == whole.read_bytes()
    assert not (tmp_path / PLACE).exists()


def test_an_interrupted_run_goes_on_with_all_that_was_done(tmp_path: Path) -> None:
    plan = plan_in(tmp_path)
    stop_after(5, tmp_path, plan)
    for tensors in (2, 3):  # the first is what was done before
        with (tmp_path / PLACE / "journal").open("ab") as journal:
            journal.write(b'"layer.1')  # a line that a kill cut short
        stop_after(tensors, tmp_path, plan)
    with (tmp_path / PLACE / "journal").open("ab") as journal:
        journal.write(b"\0\xff\n")  # what a power failure left
    told: list[int] = []
    summary = write_merge(plan, tmp_path / "out", advance=told.append)
    assert summary.resumed == 8
    assert sum(told) == summary.bytes


def test_a_header_that_a_power_failure_took_is_written_again(tmp_path: Path) -> None:
    plan = plan_in(tmp_path)
    stop_after(3, tmp_path, plan)
    with (tmp_path / PLACE / "new/model.safetensors").open("r+b") as file:
        file.write(bytes(64))
    assert write_merge(plan, tmp_path / "out").resumed == 3
    assert set(load_file(tmp_path / "out/model.safetensors")) == set(SHAPES)


def test_a_failing_disk_is_told_and_the_same_call_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    plan = plan_in(tmp_path)
    stop_after(5, tmp_path, plan)
    for part, resumed in ((engine, "_write"), 5), ((workshop.Path, "write_bytes"), len(SHAPES)):
        with monkeypatch.context() as patch:
            patch.setattr(*part, fail)
            with pytest.raises(
                MergeError, match=r"stopped \(.*No space left.*; mend that, and the"
            ):
                write_merge(plan, tmp_path / "out")
        lines = (tmp_path / PLACE / "journal").read_text().splitlines()
        assert len(lines) == resumed
    assert write_merge(plan, tmp_path / "out").resumed == len(SHAPES)


def test_too_little_memory_costs_no_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise MemoryError

    plan = plan_in(tmp_path)
    stop_after(5, tmp_path, plan)
    with monkeypatch.context() as patch:
        patch.setattr(engine, "_write", fail)
        with pytest.raises(MemoryError):
            write_merge(plan, tmp_path / "out")
    assert write_merge(plan, tmp_path / "out").resumed == 5


def test_a_place_that_cannot_be_written_to_is_refused(tmp_path: Path) -> None:
    plan = plan_in(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(MergeError, match=r"stopped \(.*Not a directory.*name a folder elsewhere"):
        write_merge(plan, tmp_path / "file/out")


def test_a_target_that_appears_meanwhile_is_not_overwritten_and_costs_no_work(
    tmp_path: Path,
) -> None:
    plan = plan_in(tmp_path)
    target = tmp_path / "out"
    with pytest.raises(MergeError, match="which is there already"):
        write_merge(plan, target, advance=lambda _: target.mkdir(exist_ok=True))
    target.rmdir()
    write_merge(plan, target)
    assert not (tmp_path / PLACE).exists()


def test_a_model_that_changes_meanwhile_is_refused(tmp_path: Path) -> None:
    plan = plan_in(tmp_path)

    def change(size: int) -> None:
        if size:
            os.utime(tmp_path / "m0/model.safetensors", ns=(1, 1))

    with pytest.raises(MergeError, match="changed while they were merged"):
        write_merge(plan, tmp_path / "out", advance=change)
    assert not (tmp_path / "out").exists()


def test_no_thread_at_all_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MergeError, match="0 tensors were to be at work at once"):
        write_merge(plan_in(tmp_path), tmp_path / "out", workers=0)


@pytest.mark.parametrize("change", ["weights", "source", "record", "shards", "damage"])
def test_another_merge_begins_anew(tmp_path: Path, change: str) -> None:
    plan = plan_in(tmp_path)
    stop_after(5, tmp_path, plan)
    extras, shard_bytes = Extras(), engine.SHARD_BYTES
    if change == "weights":
        plan = plan_in(tmp_path, weight=(2.0, 3.0))
    elif change == "source":
        os.utime(tmp_path / "m0/model.safetensors", ns=(1, 1))
    elif change == "record":
        extras = Extras(record={"recipe": {}})
    elif change == "shards":
        shard_bytes = 10_000
    else:
        os.truncate(tmp_path / PLACE / "new/model.safetensors", 100)
    summary = write_merge(plan, tmp_path / "out", extras=extras, shard_bytes=shard_bytes)
    assert summary.resumed == 0
    weight = plan.tensors[0].parameters["weight"]
    models = [load_file(tmp_path / name / "model.safetensors") for name in ("m0", "m1")]
    for file in (tmp_path / "out").glob("*.safetensors"):
        for name, merged in load_file(file).items():
            exact = sum(w * m[name].double() for w, m in zip(weight, models, strict=True))
            # Some roundings of float32 at numbers below 10.
            assert torch.allclose(merged.double(), exact / sum(weight), atol=5e-6)


def test_a_taken_place_is_refused(tmp_path: Path) -> None:
    plan = plan_in(tmp_path)
    (tmp_path / "out").mkdir()
    with pytest.raises(MergeError, match="which is there already; name a folder that is not"):
        write_merge(plan, tmp_path / "out")
    assert not (tmp_path / PLACE).exists()


def test_a_lock_of_a_finished_run_is_no_lock(tmp_path: Path) -> None:
    plan = plan_in(tmp_path)
    (tmp_path / PLACE).mkdir()
    held = os.open(tmp_path / PLACE / "lock", os.O_CREAT | os.O_RDWR)
    fcntl.flock(held, fcntl.LOCK_EX)
    (tmp_path / PLACE / "lock").unlink()
    write_merge(plan, tmp_path / "out")
    os.close(held)


def test_a_disk_that_is_too_small_is_found_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_in(tmp_path)
    usage = workshop.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(workshop.shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(MergeError, match=r"needs 9\d,\d+ bytes .* and 1,000 are free there"):
        write_merge(plan, tmp_path / "out")
    assert not (tmp_path / PLACE).exists()


def test_a_journal_is_written_only_after_its_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    sync_file, sync = workshop.sync_file, workshop.os.fsync

    def note_data(path: Path) -> None:
        events.append("data")
        sync_file(path)

    def note_any(handle: int) -> None:
        events.append("any")
        sync(handle)

    plan = plan_in(tmp_path)
    monkeypatch.setattr(workshop, "sync_file", note_data)
    monkeypatch.setattr(workshop.os, "fsync", note_any)
    monkeypatch.setattr(engine, "_SYNC_BYTES", 0)
    lines: list[int] = []

    def advance(size: int) -> None:
        journal = tmp_path / PLACE / "journal"
        lines.append(len(journal.read_text().splitlines()) if journal.exists() else 0)

    write_merge(plan, tmp_path / "out", workers=1, advance=advance)
    assert lines[1:] == list(range(len(SHAPES)))  # one line after another, each before the next
    assert events.count("data") >= len(SHAPES)


def test_a_refusal_in_one_thread_ends_all(tmp_path: Path) -> None:
    shapes = {f"layer.{n}": (64, 32) for n in range(40)}
    tensors = {name: torch.ones(shape) for name, shape in shapes.items()}
    tensors["layer.0"][0, 0] = torch.inf
    ref = write_model(tmp_path / "m", tensors)
    plan = plan_of([ref], shapes, "linear", parameters={"weight": (1.0,), "normalize": True})
    with pytest.raises(MergeError, match=r"'layer\.0' of 'm' holds NaN or infinity"):
        write_merge(plan, tmp_path / "out", workers=4)
    assert not (tmp_path / PLACE).exists()
