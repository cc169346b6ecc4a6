"""Archives: what goes out comes in, to the byte; what was tampered with adds nothing."""

import json
import re
import shutil
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from brickwork.errors import StoreError
from brickwork.store import archive
from brickwork.store.store import Store
from tests.store_children import small_brick


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    with Store.open(tmp_path_factory.mktemp("archive") / "store") as opened:
        opened.add(small_brick("fr-en", 0), tags=["prod", "gold"])
        opened.add(small_brick("fr-en", 1))
        opened.add(small_brick("shell"))
        opened.export(["shell", "fr-en@2", "fr-en@1"], opened.folder.with_name("bricks.tar"))
        yield opened


@pytest.fixture
def other(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "other") as opened:
        yield opened


@pytest.fixture
def file(store: Store, tmp_path: Path) -> Path:
    return Path(shutil.copy(store.folder.with_name("bricks.tar"), tmp_path))


def test_what_is_exported_is_imported(store: Store, other: Store, file: Path) -> None:
    imported = other.import_archive(file)
    assert [e.reference for e in imported] == ["fr-en@1", "fr-en@2", "shell@1"]
    assert imported[0].tags == ("gold", "prod")
    assert [e.hash for e in imported] == [e.hash for e in store.list()]
    assert other.get("fr-en@1") == store.get("fr-en@1")
    assert other.import_archive(file) == imported
    assert other.verify() == []


def test_equal_bricks_give_equal_bytes(store: Store, other: Store, file: Path) -> None:
    store.export(["fr-en@1", "shell", "fr-en@2", "shell@1"], file.with_name("again.tar"))
    assert file.with_name("again.tar").read_bytes() == file.read_bytes()
    other.import_archive(file)
    other.export(["fr-en@1", "fr-en@2", "shell"], file.with_name("other.tar"))
    assert file.with_name("other.tar").read_bytes() == file.read_bytes()


def test_any_tar_program_reads_an_archive(store: Store, file: Path, tmp_path: Path) -> None:
    with tarfile.open(file, "r:") as tar:
        members = {member.name: member for member in tar}
        for entry in store.list():
            for path in store.path(entry.reference).iterdir():
                member = members.pop(f"{entry.hash}/{path.name}")
                content = tar.extractfile(member)
                assert content is not None
                assert content.read() == path.read_bytes()
    assert list(members) == ["brickwork-archive.json"]


def test_a_file_of_more_than_8_gib_has_a_header_that_tar_understands() -> None:
    header = archive._header("big", 9 << 30)
    member = tarfile.TarInfo.frombuf(header, "utf-8", "strict")
    assert (member.name, member.size, member.mtime) == ("big", 9 << 30, 0)


def test_export_refuses_nothing_and_nowhere(store: Store, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="nothing to export; name at least one brick"):
        store.export([], tmp_path / "empty.tar")
    with pytest.raises(StoreError, match=r"nowhere/x\.tar cannot be written"):
        store.export(["shell"], tmp_path / "nowhere" / "x.tar")


def test_an_export_that_fails_leaves_the_file_that_was_there(
    store: Store, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = file.read_bytes()
    monkeypatch.setattr(archive, "_END", "not bytes")
    with pytest.raises(TypeError):
        store.export(["shell"], file)
    assert file.read_bytes() == before
    assert [p.name for p in file.parent.iterdir() if p.name.startswith(".")] == []


def parts_of(file: Path) -> tuple[Any, dict[str, bytes]]:
    """The manifest and the other members."""
    with tarfile.open(file, "r:") as tar:
        parts = {member.name: tar.extractfile(member).read() for member in tar}
    return json.loads(parts.pop(archive.MANIFEST)), parts


def write_parts(file: Path, manifest: Any, parts: dict[str, bytes]) -> None:
    """An archive with right headers; its manifest says what it is told to say."""
    members = {archive.MANIFEST: json.dumps(manifest).encode(), **parts}
    file.write_bytes(
        b"".join(
            archive._header(name, len(content)) + content + archive._padding(len(content))
            for name, content in members.items()
        )
        + archive._END
    )


def manifest_says(change: Callable[[Any], object]) -> Callable[[Path], None]:
    """A tampering: the manifest is changed, and nothing else."""

    def tamper(file: Path) -> None:
        manifest, parts = parts_of(file)
        change(manifest)
        write_parts(file, manifest, parts)

    return tamper


def first_brick(**fields: Any) -> Callable[[Path], None]:
    return manifest_says(lambda manifest: manifest["bricks"][0].update(fields))


def first_size(change: Callable[[int], int]) -> Callable[[Path], None]:
    def resize(manifest: Any) -> None:
        files = manifest["bricks"][0]["files"]
        files["brick.json"] = change(files["brick.json"])

    return manifest_says(resize)


def bytes_say(old: bytes, new: bytes) -> Callable[[Path], None]:
    """A tampering: bytes are replaced by as many others."""
    assert len(old) == len(new)

    def tamper(file: Path) -> None:
        assert old in file.read_bytes()
        file.write_bytes(file.read_bytes().replace(old, new))

    return tamper


def drop_brick_json(file: Path) -> None:
    manifest, parts = parts_of(file)
    brick = manifest["bricks"][0]
    del brick["files"]["brick.json"], parts[f"{brick['hash']}/brick.json"]
    write_parts(file, manifest, parts)


def claim_another_hash(file: Path) -> None:
    manifest, parts = parts_of(file)
    true, false = manifest["bricks"][0]["hash"], "0" * 64
    manifest["bricks"][0]["hash"] = false
    write_parts(file, manifest, {n.replace(true, false): part for n, part in parts.items()})


def flip_a_tensor_bit(file: Path) -> None:
    manifest, parts = parts_of(file)
    name = next(name for name in parts if name.endswith(".safetensors"))
    parts[name] = parts[name][:-1] + bytes([parts[name][-1] ^ 1])
    write_parts(file, manifest, parts)


def relink(file: Path, kind: bytes) -> None:
    """Turn the header of the first brick.json into one of another kind, checksum and all."""
    content = bytearray(file.read_bytes())
    start = content.index(b"/brick.json\0") - 64
    block = content[start : start + 512]
    block[156:157] = kind
    block[157:168] = b"/etc/passwd"
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    content[start : start + 512] = block
    file.write_bytes(content)
    with tarfile.open(file, "r:") as tar:
        assert next(m.type for m in tar if m.name.endswith("/brick.json")) == kind


def pad(file: Path) -> None:
    content = bytearray(file.read_bytes())
    end = content.index(b"/adapter_config.json\0") - 64
    assert content[end - 1] == 0
    content[end - 1] = 1
    file.write_bytes(content)


def append(content: bytes) -> Callable[[Path], object]:
    return lambda file: file.write_bytes(file.read_bytes() + content)


BRICKS = "is refused, and nothing of it was added: its manifest is not valid: bricks.0"
WRONG_PLACE, CHANGED = "is not where the manifest says", "has changed since it was written"
TAMPERINGS: dict[str, tuple[Callable[[Path], object], str]] = {
    "text": (lambda f: f.write_text("hello"), "is not an archive that brickwork store export"),
    "nothing": (lambda f: f.write_bytes(b""), "is not an archive that"),
    "half": (lambda f: f.write_bytes(f.read_bytes()[:3000]), "it has 3,000 bytes, its manifest"),
    "more at the end": (append(bytes(512)), "bytes, its manifest says"),
    "an absolute path": (first_brick(files={"/etc/passwd": 5}), f"{BRICKS}.files"),
    "a path upwards": (first_brick(files={"../brick.json": 5}), f"{BRICKS}.files"),
    "an unknown member": (first_brick(files={"evil.py": 5}), f"{BRICKS}.files"),
    "a hash that is a path": (first_brick(hash="../" + "a" * 61), f"{BRICKS}.hash"),
    "a tag that steers": (first_brick(tags=["a\x1b[31m"]), f"{BRICKS}.tags"),
    "an unknown field": (manifest_says(lambda m: m.update(run="rm")), "run: Extra inputs are not"),
    "a newer format": (manifest_says(lambda m: m.update(format=2)), "format: Input should be 1"),
    "a brick twice": (
        manifest_says(lambda m: m["bricks"][1].update(hash=m["bricks"][0]["hash"])),
        "its manifest names a brick twice",
    ),
    "a negative size": (first_size(lambda size: -1), "greater than or equal to 0"),
    "a size that is not real": (first_size(lambda size: 1 << 50), "manifest says 1,125,899,906,8"),
    "a size a little off": (first_size(lambda size: size - 1), f"brick.json {WRONG_PLACE}"),
    "no brick.json": (drop_brick_json, "has no file 'brick.json'"),
    "another hash": (claim_another_hash, "the brick 000000000000 has the hash"),
    "other tensors": (flip_a_tensor_bit, CHANGED),
    "other words": (bytes_say(b"content 0", b"content X"), CHANGED),
    "a symbolic link": (lambda f: relink(f, tarfile.SYMTYPE), WRONG_PLACE),
    "a hard link": (lambda f: relink(f, tarfile.LNKTYPE), WRONG_PLACE),
    "a device": (lambda f: relink(f, tarfile.CHRTYPE), WRONG_PLACE),
    "a header that leads elsewhere": (
        bytes_say(b"/adapter_config.json\0", b"/../../../../passwd\0\0"),
        WRONG_PLACE,
    ),
    "something in the padding": (pad, "is longer than the manifest says"),
}


@pytest.mark.parametrize("tampering", TAMPERINGS)
def test_refuses_what_was_tampered_with_and_adds_nothing(
    tampering: str, other: Store, file: Path
) -> None:
    tamper, message = TAMPERINGS[tampering]
    tamper(file)
    with pytest.raises(StoreError, match=message):
        other.import_archive(file)
    assert other.list(deleted=True) == []
    assert other.verify() == []
    assert list((other.folder / "temp").glob("*")) == []


def test_the_last_brick_can_spoil_all(store: Store, other: Store, file: Path) -> None:
    content = file.read_bytes()
    where = content.rindex(b'"text": "content')
    file.write_bytes(content[: where + 10] + b"C" + content[where + 11 :])
    with pytest.raises(StoreError, match="is refused, and nothing of it was added"):
        other.import_archive(file)
    assert other.list(deleted=True) == []
    assert other.verify() == []


def test_refuses_what_is_too_large_before_reading_it(other: Store, file: Path) -> None:
    size = file.stat().st_size
    with pytest.raises(StoreError, match=f"has {size:,} bytes, more than the {size - 1:,}"):
        other.import_archive(file, limit=size - 1)
    assert len(other.import_archive(file, limit=size)) == 3
    with file.open("r+b") as sparse:
        sparse.truncate(1 << 40)
    with pytest.raises(StoreError, match="has 1,099,511,627,776 bytes, more than the 17,179,869"):
        other.import_archive(file)


def test_refuses_a_file_that_is_not_there(other: Store, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"there is no file .*; name an archive"):
        other.import_archive(tmp_path / "missing.tar")
    with pytest.raises(StoreError, match="there is no file"):
        other.import_archive(tmp_path)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(position=st.floats(0, 1, exclude_max=True), flip=st.integers(1, 255))
def test_no_flipped_byte_changes_a_brick(
    position: float, flip: int, store: Store, other: Store, file: Path
) -> None:
    content = bytearray(file.read_bytes())
    content[int(position * len(content))] ^= flip
    file.with_name("flipped").write_bytes(content)
    try:
        imported = other.import_archive(file.with_name("flipped"))
    except StoreError as error:
        assert re.search("is refused|is not an archive", str(error))  # noqa: PT017 - or not at all
        assert other.list() == []
    else:  # a tag, or white space of the manifest
        assert [e.hash for e in imported] == [e.hash for e in store.list()]
        for entry in imported:
            other.remove(entry.reference)
        other.collect(0)
