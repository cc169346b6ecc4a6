"""Safetensors files: read behind a map, and laid out before they are written."""

import json
import struct
from pathlib import Path

import pytest
import torch
from huggingface_hub import split_torch_state_dict_into_shards
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from brickwork.errors import ModelError
from brickwork.model.shard_layout import Shape, lay_out
from brickwork.model.shards import Shards, read_header

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.bool, torch.float64]


def test_reads_what_was_saved_of_every_dtype(tmp_path: Path) -> None:
    tensors = {str(d): torch.arange(5).to(d) for d in DTYPES} | {"empty": torch.zeros(0, 3)}
    save_file(tensors, tmp_path / "model.safetensors")
    shards = Shards(tmp_path)
    assert set(shards.tensors) == set(tensors)
    for name, tensor in tensors.items():
        assert torch.equal(shards.tensor(name), tensor)
        assert shards.tensor(name).dtype == tensor.dtype


def test_writing_to_a_tensor_changes_nothing_on_disk(tmp_path: Path) -> None:
    save_file({"w": torch.zeros(4)}, tmp_path / "model.safetensors")
    shards = Shards(tmp_path)
    shards.tensor("w").fill_(1.0)
    assert torch.equal(shards.tensor("w"), torch.zeros(4))


def test_data_that_is_not_aligned_is_read_too(tmp_path: Path) -> None:
    header = json.dumps({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
    header += b" " * (1 - len(header) % 2)  # an odd length
    data = struct.pack("<2f", 1.5, -2.0)
    file = tmp_path / "model.safetensors"
    file.write_bytes(struct.pack("<Q", len(header)) + header + data)
    assert torch.equal(Shards(tmp_path).tensor("w"), torch.tensor([1.5, -2.0]))


def test_a_file_that_has_become_shorter_is_refused(tmp_path: Path) -> None:
    save_file({"w": torch.zeros(100_000)}, tmp_path / "model.safetensors")
    shards = Shards(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"short")
    with pytest.raises(ModelError, match="cannot be read any more"):
        shards.tensor("w")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"shape": [3]}, "does not fit its place"),
        ({"data_offsets": [0, 400], "shape": [100]}, "take 400 bytes, but the file has room for 8"),
        ({"data_offsets": [0, 4], "shape": [1]}, "take 4 bytes, but the file has room for 8"),
        ({"data_offsets": [4, 8], "shape": [1]}, "leave a gap at byte 0"),
        ({"data_offsets": [8, 0], "shape": [0]}, "leave a gap at byte 0"),
        ({"dtype": "F31"}, "'F31'"),
        ({"shape": [-2]}, "shape"),
    ],
)
def test_a_header_that_lies_is_refused(tmp_path: Path, change: dict, reason: str) -> None:
    entry = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **change}
    header = json.dumps({"w": entry}).encode()
    file = tmp_path / "x.safetensors"
    file.write_bytes(struct.pack("<Q", len(header)) + header + bytes(8))
    with pytest.raises(ModelError, match=reason):
        read_header(file)


PAIR = b'{"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}'


@pytest.mark.parametrize(
    ("header", "data"),
    [
        (b"[1]", 0),
        (b'{"w": ' + b"[" * 100_000, 0),
        (b'{"w": {"dtype": "F32", "shape": [0, 1%s], "data_offsets": [0, 0]}}' % (b"0" * 30), 0),
        (b"{%s, %s}" % (b'"v": ' + PAIR, b'"w": ' + PAIR), 8),
    ],
    ids=["a list", "brackets", "an axis beyond torch's numbers", "tensors in one place"],
)
def test_a_header_that_is_no_header_is_refused(tmp_path: Path, header: bytes, data: int) -> None:
    file = tmp_path / "x.safetensors"
    file.write_bytes(struct.pack("<Q", len(header)) + header + bytes(data))
    with pytest.raises(ModelError, match="is no sound safetensors file"):
        read_header(file)


@given(
    st.lists(st.tuples(st.sampled_from(DTYPES), st.integers(0, 9)), min_size=1, max_size=12),
    st.integers(1, 60),
)
def test_shards_are_those_that_the_hub_library_makes(
    sizes: list[tuple[torch.dtype, int]], shard_bytes: int
) -> None:
    tensors = {f"t{n}": torch.zeros(size, dtype=dtype) for n, (dtype, size) in enumerate(sizes)}
    layout = lay_out([Shape(n, t.dtype, tuple(t.shape)) for n, t in tensors.items()], shard_bytes)
    # Without a tensor of no bytes, which that library takes for one that shares its memory.
    if all(size for _, size in sizes):
        theirs = split_torch_state_dict_into_shards(tensors, max_shard_size=shard_bytes)
        ours = {name: place.file for name, place in layout.places.items()}
        assert ours == theirs.tensor_to_filename or len(layout.headers) == 1
        assert set(layout.headers) == set(theirs.filename_to_tensors)
        if layout.index is not None:
            assert layout.index["metadata"]["total_size"] == theirs.metadata["total_size"]
    for name, (file, offset) in layout.places.items():
        assert offset % tensors[name].dtype.itemsize == 0
        assert offset + tensors[name].nbytes <= layout.sizes[file]
