"""A partition on disk: whole and back, or refused with the reason."""

from pathlib import Path

import pytest
import torch

from brickwork.brick.partition import (
    SHARED,
    SPEC_FILE,
    TENSOR_FILE,
    Partition,
    PartitionSpec,
    read_partition,
    write_partition,
)
from brickwork.errors import BrickFormatError
from tests.bricks import paper_base

SPEC = PartitionSpec(
    base=paper_base().fingerprint, method="random", seed=3, functions=("Coding", "Math")
)
OWNERS = {
    0: torch.tensor([1, 0, SHARED, 1, 0, 0, 1], dtype=torch.int32),
    1: torch.tensor([0, 1, 2, 2, 1, 0, SHARED], dtype=torch.int32),
}


def partition(**changes: object) -> Partition:
    fields = {
        "spec": SPEC,
        "owners": OWNERS,
        "profile": {0: torch.tensor([[0.1, 0.2], [0.3, 0.4]])},
    }
    return Partition(**(fields | changes))  # type: ignore[arg-type]


def test_members_and_shared_neurons_are_all_neurons_once() -> None:
    one = partition()
    assert [m.tolist() for m in one.members(0)] == [[1, 4, 5], [0, 3, 6]]
    assert one.shared(0).tolist() == [2]
    assert one.groups(1) == 3


def test_a_folder_gives_back_what_was_written(tmp_path: Path) -> None:
    one = partition()
    write_partition(one, tmp_path / "p")
    again = read_partition(tmp_path / "p")
    assert again.hash == one.hash
    assert again.spec == one.spec
    assert all(torch.equal(again.owners[n], OWNERS[n]) for n in OWNERS)
    assert torch.equal(again.profile[0], one.profile[0])
    write_partition(again, tmp_path / "p")  # a partition makes room for a partition


def test_another_group_or_seed_is_another_hash() -> None:
    moved = {0: OWNERS[0].flip(0), 1: OWNERS[1]}
    other_seed = SPEC.model_copy(update={"seed": 4})
    hashes = {p.hash for p in (partition(), partition(owners=moved), partition(spec=other_seed))}
    assert len(hashes) == 3


@pytest.mark.parametrize(
    ("owners", "reason"),
    [
        ({}, "it has no layer"),
        ({0: torch.tensor([0, 2])}, "a group has no neurons"),
        ({0: torch.tensor([0, 2**60])}, "a group has no neurons"),  # found without counting so far
        ({0: torch.tensor([-1, -1])}, "counted from 0"),
        ({0: torch.tensor([-2, 0])}, "counted from 0"),
        ({0: torch.tensor([0.0, 1.0])}, "whole numbers"),
        ({0: torch.tensor([True, False])}, "whole numbers"),
        ({0: torch.tensor([1j, 0j])}, "whole numbers"),
        ({1: torch.tensor([0, 0])}, "layers.0: has a profile and no owners"),
        ({0: torch.tensor([0, 0, 0])}, "the profile is"),
    ],
)
def test_what_is_no_partition_is_not_written(
    owners: dict[int, torch.Tensor], reason: str, tmp_path: Path
) -> None:
    with pytest.raises(BrickFormatError, match=reason):
        write_partition(partition(owners=owners), tmp_path / "p")
    assert not (tmp_path / "p").exists()


def test_a_changed_file_and_a_foreign_folder_are_refused(tmp_path: Path) -> None:
    write_partition(partition(), tmp_path / "p")
    text = (tmp_path / "p" / SPEC_FILE).read_text()
    (tmp_path / "p" / SPEC_FILE).write_text(text.replace('"seed": 3', '"seed": 5'))
    with pytest.raises(BrickFormatError, match="has changed since it was written"):
        read_partition(tmp_path / "p")
    (tmp_path / "p" / SPEC_FILE).write_text(text)
    (tmp_path / "p" / TENSOR_FILE).write_bytes(b"nothing")
    with pytest.raises(BrickFormatError, match="not a safetensors file"):
        read_partition(tmp_path / "p")
    (tmp_path / "q").mkdir()
    (tmp_path / "q" / "mine.txt").write_text("mine")
    with pytest.raises(BrickFormatError, match="holds no partition"):
        write_partition(partition(), tmp_path / "q")
