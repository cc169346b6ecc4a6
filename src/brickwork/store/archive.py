"""Several bricks as one file, for moving them from store to store.

An archive is an uncompressed tar that every tar program can read. It opens with a manifest of all
that follows, name by name and size by size, and equal bricks give equal bytes. Reading is
strict: each header must be, to the byte, the one that the manifest implies, so there is no place
for a link, a foreign path, a file twice or a size that is not real; and nothing of the file
reaches a store but bricks whose hash was computed anew.
"""

import io
import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from brickwork.brick.spec import explain
from brickwork.errors import BrickFormatError, StoreError
from brickwork.store.entry import HASH_PATTERN, TAG_PATTERN

if TYPE_CHECKING:
    from brickwork.brick.brick import Brick

MANIFEST = "brickwork-archive.json"
LIMIT = 16 << 30
_MANIFEST_LIMIT = 8 << 20
_BLOCK = 512
_END = bytes(2 * _BLOCK)
_CHUNK = 1 << 20

_FileName = Literal[
    "brick.json", "adapter_config.json", "adapter_model.safetensors", "tensors.safetensors"
]
_Size = Annotated[int, Field(ge=0, lt=1 << 60)]


class _Document(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class _Item(_Document):
    hash: Annotated[str, StringConstraints(pattern=rf"^{HASH_PATTERN}\z")]
    tags: list[Annotated[str, StringConstraints(pattern=rf"^{TAG_PATTERN}\z")]]
    files: dict[_FileName, _Size]


class _Manifest(_Document):
    format: Literal[1]
    bricks: list[_Item]


def write_archive(file: Path, bricks: Sequence[tuple[str, tuple[str, ...], Path]]) -> None:
    """Write the folders of bricks, given as (hash, tags, folder), as one file, all or nothing."""
    items = [
        _Item(hash=content, tags=list(tags), files=_sizes(folder))
        for content, tags, folder in bricks
    ]
    manifest = _Manifest(format=1, bricks=items).model_dump_json(indent=2).encode() + b"\n"
    with _durable(file) as out:
        _write_member(out, MANIFEST, io.BytesIO(manifest), len(manifest))
        for item, (_, _, folder) in zip(items, bricks, strict=True):
            _write_brick(out, item, folder)
        out.write(_END)


def read_archive(file: Path, limit: int) -> Iterator[tuple["Brick", tuple[str, ...]]]:
    """The bricks of an archive with their tags, one after the other, each verified by its hash.

    Raises:
        StoreError: if the file is not an archive, is damaged, larger than ``limit`` bytes, or
            holds anything but what its manifest says.
    """
    with _opened(file) as stream:
        real = os.fstat(stream.fileno()).st_size
        if real > limit:
            raise StoreError(
                f"{file} has {real:,} bytes, more than the {limit:,} that are read; raise the "
                "limit if you trust it."
            )
        manifest = _read_manifest(stream, file, real)
        for item in manifest.bricks:
            with tempfile.TemporaryDirectory(prefix="brickwork-") as scratch:
                brick = _read_brick(stream, file, item, Path(scratch))
            yield brick, tuple(item.tags)
        if stream.read() != _END:
            raise _refusal(file, "it does not end where its manifest says")


def _read_manifest(stream: IO[bytes], file: Path, real: int) -> _Manifest:
    block = stream.read(_BLOCK)
    digits = re.fullmatch(rb"[0-7]{11}", block[124:135])
    size = int(digits[0], 8) if digits else 0
    if size > _MANIFEST_LIMIT or block != _header(MANIFEST, size):
        raise StoreError(f"{file} is not an archive that brickwork store export wrote.")
    try:
        manifest = _Manifest.model_validate_json(stream.read(size))
    except ValidationError as error:
        raise _refusal(file, f"its manifest is not valid: {explain(error)}") from None
    if stream.read(-size % _BLOCK) != _padding(size):
        raise _refusal(file, "its manifest is cut off")
    sizes = [size, *(s for item in manifest.bricks for s in item.files.values())]
    claimed = sum(_BLOCK + s + -s % _BLOCK for s in sizes) + len(_END)
    if claimed != real:
        raise _refusal(file, f"it has {real:,} bytes, its manifest says {claimed:,}")
    if len({item.hash for item in manifest.bricks}) != len(manifest.bricks):
        raise _refusal(file, "its manifest names a brick twice")
    return manifest


def _read_brick(stream: IO[bytes], file: Path, item: _Item, scratch: Path) -> "Brick":
    from brickwork.brick.folder import read_brick  # noqa: PLC0415 - torch

    for name, size in item.files.items():
        if stream.read(_BLOCK) != _header(f"{item.hash}/{name}", size):
            raise _refusal(file, f"{item.hash[:12]}/{name} is not where the manifest says")
        with (scratch / name).open("xb") as target:
            _copy(stream, target, size, file)
        if stream.read(-size % _BLOCK) != _padding(size):
            raise _refusal(file, f"{item.hash[:12]}/{name} is longer than the manifest says")
    try:
        brick = read_brick(scratch)
    except BrickFormatError as error:
        problem = str(error).replace(str(scratch), item.hash[:12])
        raise _refusal(file, problem.rstrip(".")) from None
    if brick.hash != item.hash:
        raise _refusal(file, f"the brick {item.hash[:12]} has the hash {brick.hash[:12]} instead")
    return brick


def _refusal(file: Path, problem: str) -> StoreError:
    return StoreError(f"{file} is refused, and nothing of it was added: {problem}.")


def _sizes(folder: Path) -> dict[_FileName, int]:
    names: tuple[_FileName, ...] = _FileName.__args__  # type: ignore[attr-defined]
    return {name: (folder / name).stat().st_size for name in names if (folder / name).is_file()}


def _write_brick(out: IO[bytes], item: _Item, folder: Path) -> None:
    for name, size in item.files.items():
        with (folder / name).open("rb") as source:
            _write_member(out, f"{item.hash}/{name}", source, size)


def _write_member(out: IO[bytes], name: str, source: IO[bytes], size: int) -> None:
    out.write(_header(name, size))
    _copy(source, out, size, Path(name))
    out.write(_padding(size))


def _header(name: str, size: int) -> bytes:
    """A tar header (POSIX ustar) that depends on name and size alone."""
    octal = b"%011o\0" % size if size < 8**11 else b"\x80" + size.to_bytes(11, "big")
    start = name.encode().ljust(100, b"\0") + b"0000644\0" + 2 * b"0000000\0" + octal
    end = b"0" + bytes(100) + b"ustar\00000"
    blank = (start + b"00000000000\0" + b" " * 8 + end).ljust(_BLOCK, b"\0")
    return blank[:148] + b"%06o\0 " % sum(blank) + blank[156:]


def _padding(size: int) -> bytes:
    return bytes(-size % _BLOCK)


def _copy(source: IO[bytes], target: IO[bytes], size: int, file: Path) -> None:
    left = size
    while left:
        chunk = source.read(min(left, _CHUNK))
        if not chunk:
            raise _refusal(file, "it ends in the middle")
        target.write(chunk)
        left -= len(chunk)


@contextmanager
def _opened(file: Path) -> Iterator[IO[bytes]]:
    if not file.is_file():
        raise StoreError(f"there is no file {file}; name an archive of brickwork store export.")
    try:
        with file.open("rb") as stream:
            yield stream
    except OSError as error:
        raise StoreError(f"{file} cannot be read: {error}.") from None


@contextmanager
def _durable(file: Path) -> Iterator[IO[bytes]]:
    """A file that is there as a whole once the block is left, and not at all before."""
    part = file.with_name(f".{file.name}.{os.urandom(6).hex()}")
    try:
        with part.open("xb") as out:
            yield out
            out.flush()
            os.fsync(out.fileno())
        part.replace(file)
    except OSError as error:
        raise StoreError(f"{file} cannot be written: {error}.") from None
    finally:
        part.unlink(missing_ok=True)
