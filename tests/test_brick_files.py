"""Files from strangers: only JSON and safetensors are read, and nothing outside the folder."""

import json
import os
import pickle
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from brickwork.brick.brick import Brick
from brickwork.brick.files import read_json, read_tensors
from brickwork.brick.folder import brick_files, read_brick, read_peft, write_brick
from brickwork.errors import BrickFormatError, BrickworkError
from tests.bricks import FORMS, paper_base, random_brick

BASE = paper_base()


def brick(form: str = "lora", seed: int = 0, **kw: Any) -> Brick:
    return random_brick(form, BASE, torch.Generator().manual_seed(seed), **kw)


@pytest.fixture(params=["lora", "bias"])
def written(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A brick in a folder that is also a PEFT adapter, and one in a folder that is not."""
    write_brick(brick(request.param), tmp_path / "brick")
    return tmp_path / "brick"


@pytest.mark.parametrize("pattern", ["brick.json", "*.safetensors", "adapter_config.json"])
@pytest.mark.parametrize("relative", [False, True])
def test_a_link_out_of_the_folder_is_refused(pattern: str, relative: bool, tmp_path: Path) -> None:
    folder = tmp_path / "brick"
    write_brick(brick(), folder)
    (path,) = folder.glob(pattern)
    outside = path.rename(tmp_path / f"secret-{path.name}")
    path.symlink_to(f"../{outside.name}" if relative else outside)
    with pytest.raises(BrickFormatError, match="leads out of its folder; refused"):
        read_brick(folder)


def test_a_link_to_a_neighbour_with_the_same_beginning_is_refused(written: Path) -> None:
    neighbour = written.with_name("brick-2")
    written.rename(neighbour)
    written.mkdir()
    for path in neighbour.iterdir():
        (written / path.name).symlink_to(f"../brick-2/{path.name}")
    with pytest.raises(BrickFormatError, match="leads out of its folder"):
        read_brick(written)


def test_a_link_inside_the_folder_and_a_link_to_the_folder_are_followed(written: Path) -> None:
    expected = read_brick(written)
    (written / "brick.json").rename(written / "real.json")
    (written / "brick.json").symlink_to("real.json")
    alias = written.with_name("alias")
    alias.symlink_to(written)
    assert read_brick(alias) == expected


def _hub_cache(written: Path, below: str) -> Path:
    """The files as the Hub's cache keeps them: links from a snapshot into a folder of blobs."""
    cache = written.parent / "models--org--brick"
    folder = cache / "snapshots" / "0123abc" / below
    (cache / "blobs").mkdir(parents=True)
    folder.mkdir(parents=True)
    for number, path in enumerate(written.iterdir()):
        blob = path.rename(cache / "blobs" / f"blob{number}")
        (folder / path.name).symlink_to(os.path.relpath(blob, folder))
    return folder


@pytest.mark.parametrize("below", ["", "adapters/fr"])
def test_the_layout_of_the_hubs_cache_is_accepted(written: Path, below: str) -> None:
    expected = read_brick(written)
    assert read_brick(_hub_cache(written, below)) == expected


def test_a_hub_cache_whose_blobs_are_elsewhere_is_refused(written: Path) -> None:
    folder = _hub_cache(written, "")
    blobs = folder.parents[1] / "blobs"
    blobs.rename(written.parent / "elsewhere")
    blobs.symlink_to(written.parent / "elsewhere")
    with pytest.raises(BrickFormatError, match="leads out of its folder"):
        read_brick(folder)


def test_a_loop_of_links_is_refused(written: Path) -> None:
    (written / "brick.json").unlink()
    (written / "brick.json").symlink_to("brick.json")
    with pytest.raises(BrickFormatError, match=r"brick\.json"):
        read_brick(written)


@pytest.mark.parametrize("name", ["brick.json", "*.safetensors"])
def test_what_is_not_a_file_is_refused(name: str, written: Path) -> None:
    (path,) = written.glob(name)
    path.unlink()
    with pytest.raises(BrickFormatError, match=f"has no file '{path.name}'"):
        read_brick(written)
    path.mkdir()
    with pytest.raises(BrickFormatError, match=f"has no file '{path.name}'"):
        read_brick(written)
    path.rmdir()
    os.mkfifo(path)
    with pytest.raises(BrickFormatError, match=f"has no file '{path.name}'"):
        read_brick(written)
    path.unlink()
    path.symlink_to("/dev/zero")
    with pytest.raises(BrickFormatError):
        read_brick(written)


@pytest.mark.parametrize("folder", ["missing", "brick/brick.json", "a\x00b"])
def test_a_folder_that_is_none_is_refused(folder: str, written: Path) -> None:
    with pytest.raises(BrickFormatError):
        read_brick(written.parent / folder)


def test_a_file_that_cannot_be_read_is_refused(
    written: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", denied)
    with pytest.raises(BrickFormatError, match=r"brick\.json cannot be read: .*Permission denied"):
        read_brick(written)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is not JSON"),
        (b"{", "is not JSON"),
        (b"\x80\x04K\x01.", "is not JSON"),
        (b"\xff\xfe{", "is not JSON"),
        (b"{} {}", "is not JSON"),
        (b"{'a': 1}", "is not JSON"),
        (b'{"a": NaN}', "NaN is no JSON number"),
        (b'{"a": [Infinity]}', "Infinity is no JSON number"),
        (b'{"a": -Infinity}', "-Infinity is no JSON number"),
        (b'{"a": 1, "a": 2}', "a field is given twice"),
        (b'{"b": {"a": 1, "a": 1}}', "a field is given twice"),
        (b'{"a": ' + b"9" * 5000 + b"}", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "is not JSON"),
        (b"[]", "holds no JSON object"),
        (b"[1, 2]", "holds no JSON object"),
        (b'"brick"', "holds no JSON object"),
        (b"null", "holds no JSON object"),
        (b"1", "holds no JSON object"),
        (b'{"a": "' + b"x" * (8 << 20) + b'"}', "more than the 8,388,608"),
    ],
)
def test_refuses_what_is_no_short_json_object(content: bytes, reason: str, tmp_path: Path) -> None:
    (tmp_path / "brick.json").write_bytes(content)
    with pytest.raises(BrickFormatError) as refusal:
        read_json(tmp_path, "brick.json")
    assert reason in str(refusal.value)


@pytest.mark.parametrize("depth", [100, 300, 600, 900, 1500])
def test_deep_json_is_refused_without_an_overflow(depth: int, written: Path) -> None:
    document = json.loads((written / "brick.json").read_text())
    text = json.dumps({**document, "options": "HERE"})
    nested = '{"a":' * depth + "1" + "}" * depth
    (written / "brick.json").write_text(text.replace('"HERE"', nested))
    with pytest.raises(BrickFormatError):
        read_brick(written)


@pytest.mark.parametrize("text", ['"\\ud800"', '{"\\udfff": 1}'])
def test_text_that_is_not_unicode_is_refused(text: str, written: Path) -> None:
    document = json.loads((written / "brick.json").read_text())
    whole = json.dumps({**document, "lineage": {"arguments": {"a": "HERE"}}})
    (written / "brick.json").write_text(whole.replace('"HERE"', text))
    with pytest.raises(BrickFormatError, match="does not describe a brick: document: Value error"):
        read_brick(written)


class _Bomb:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, ("exit 1",)


def _safetensors(header: Any, data: bytes = b"\x00" * 16, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def _entry(dtype: str = "F32", shape: Any = (4,), offsets: Any = (0, 16)) -> dict[str, Any]:
    return {"a": {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}}


def _torch_pickle() -> bytes:
    return pickle.dumps({"a": _Bomb()})


BAD_TENSORS = {
    "empty": b"",
    "short": b"\x00" * 7,
    "pickle": _torch_pickle(),
    "zip": b"PK\x03\x04" + b"\x00" * 64,
    "header longer than the file": _safetensors(_entry(), length=1 << 20),
    "absurd header length": _safetensors(_entry(), length=2**63),
    "largest header length": _safetensors(_entry(), length=2**64 - 1),
    "header is no JSON": _safetensors(b"{" * 64),
    "header is a list": _safetensors([1, 2]),
    "deep header": _safetensors(b'{"a":' * 5000 + b"1" + b"}" * 5000),
    "header is no text": _safetensors(b"\xff" * 64),
    "absurd shape": _safetensors(_entry(shape=(2**62, 2**62))),
    "shape that overflows": _safetensors(_entry(shape=(2**63, 2))),
    "negative shape": _safetensors(_entry(shape=(-4,))),
    "shape is text": _safetensors({"a": {"dtype": "F32", "shape": "4", "data_offsets": [0, 16]}}),
    "offsets outside": _safetensors(_entry(offsets=(0, 1 << 40), shape=(1 << 38,))),
    "offsets turned round": _safetensors(_entry(offsets=(16, 0))),
    "offsets that overlap": _safetensors(
        {**_entry(), "b": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}
    ),
    "shape and offsets differ": _safetensors(_entry(shape=(3,))),
    "bytes that belong to nothing": _safetensors(_entry(), data=b"\x00" * 32),
    "too few bytes": _safetensors(_entry(), data=b"\x00" * 8),
    "unknown dtype": _safetensors(_entry(dtype="F31")),
    "dtype is null": _safetensors({"a": {"dtype": None, "shape": [4], "data_offsets": [0, 16]}}),
    "missing field": _safetensors({"a": {"dtype": "F32"}}),
    "four-bit dtype": _safetensors(_entry(dtype="F4", shape=(32,))),
    "six-bit dtype": _safetensors(_entry(dtype="F6_E2M3", shape=(4,), offsets=(0, 3)), b"\x00" * 3),
    "scale dtype": _safetensors(_entry(dtype="F8_E8M0", shape=(16,))),
}


@pytest.mark.parametrize("case", BAD_TENSORS)
def test_refuses_what_is_no_safetensors_file(case: str, tmp_path: Path) -> None:
    (tmp_path / "tensors.safetensors").write_bytes(BAD_TENSORS[case])
    with pytest.raises(BrickFormatError, match="is not a safetensors file"):
        read_tensors(tmp_path, "tensors.safetensors")


@pytest.mark.parametrize("case", BAD_TENSORS)
@pytest.mark.parametrize("form", FORMS)
def test_a_brick_with_such_a_file_is_refused(case: str, form: str, tmp_path: Path) -> None:
    write_brick(brick(form), tmp_path / "brick")
    next((tmp_path / "brick").glob("*.safetensors")).write_bytes(BAD_TENSORS[case])
    with pytest.raises(BrickFormatError, match="is not a safetensors file"):
        read_brick(tmp_path / "brick")


def test_a_pickle_is_never_read_and_the_message_says_how_to_save_again(tmp_path: Path) -> None:
    write_brick(brick(), tmp_path / "brick")
    (tmp_path / "brick" / "adapter_model.safetensors").unlink()
    (tmp_path / "brick" / "adapter_model.bin").write_bytes(_torch_pickle())
    with pytest.raises(BrickFormatError, match=r"never read; save .* safe_serialization=True"):
        read_peft(tmp_path / "brick", BASE, "x")


@given(data=st.data())
def test_a_spoiled_file_gives_the_brick_or_a_refusal(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.getbasetemp() / "spoiled"
    folder.mkdir(exist_ok=True)
    one = brick(data.draw(st.sampled_from(FORMS)))
    contents = brick_files(one)
    name = data.draw(st.sampled_from(sorted(contents)))
    content = bytearray(contents[name])
    at = data.draw(st.integers(0, min(len(content), 3000) - 1))
    if data.draw(st.booleans()):
        content[at] = data.draw(st.integers(0, 255))
    else:
        del content[at : at + data.draw(st.integers(1, 50))]
    for other in contents:
        (folder / other).write_bytes(bytes(content) if other == name else contents[other])
    try:
        found: Brick | None = read_brick(folder)
    except BrickworkError:
        found = None
    assert found is None or found == one or '"hash"' not in content.decode(errors="replace")


def test_reading_a_brick_loads_no_library_that_runs_models(tmp_path: Path) -> None:
    written = tmp_path / "brick"
    write_brick(brick(), written)
    code = (
        "import sys, pathlib; from brickwork.brick.folder import read_brick; "
        f"read_brick(pathlib.Path({str(written)!r})); "
        "print([m for m in ('peft', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
