"""One brick of a store, and the ways to name it: ``fr-en``, ``fr-en@2``, ``sha256:1f3a...``."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from brickwork.brick.spec import NAME_PATTERN, BrickSpec
from brickwork.errors import StoreError

HASH_PATTERN = r"[0-9a-f]{64}"
TAG_PATTERN = r"[^\s,\x00-\x1f\x7f]{1,80}"
SHORTEST_PREFIX = 8

_REFERENCE = re.compile(
    rf"(?P<name>{NAME_PATTERN})(?:@(?P<version>[1-9][0-9]{{0,8}}))?|sha256:(?P<digits>[0-9a-f]{{1,64}})"
)


@dataclass(frozen=True)
class Entry:
    """A brick as the catalog knows it; its tensors stay on the disk.

    Attributes:
        name: the brick's name, ``fr-en``.
        version: 1 for the first content under that name, then 2; never given twice.
        hash: the brick's content hash, sha256 in hex.
        form: the row of FORMS it is of.
        bytes: size of its tensors.
        created: when it came into this store, UTC, ISO 8601.
        tags: sorted; they belong to the store, not to the brick, and change no hash.
        deleted: removed, but not collected yet.
        spec: everything the brick says of itself.
    """

    name: str
    version: int
    hash: str
    form: str
    bytes: int
    created: str
    tags: tuple[str, ...]
    deleted: bool
    spec: BrickSpec

    @property
    def reference(self) -> str:
        """Name and version, ``fr-en@2``: it means this content in this store for good."""
        return f"{self.name}@{self.version}"

    def document(self) -> dict[str, Any]:
        """The entry as JSON can say it, without the sites and the PEFT configuration."""
        function, base = self.spec.function, self.spec.base
        return {
            "reference": self.reference,
            "name": self.name,
            "version": self.version,
            "hash": self.hash,
            "form": self.form,
            "bytes": self.bytes,
            "created": self.created,
            "tags": list(self.tags),
            "deleted": self.deleted,
            "function": function.model_dump(mode="json"),
            "base": base.model_dump(mode="json"),
            "licence": self.spec.licence,
        }


@dataclass(frozen=True)
class Reference:
    """What a reference asks for: a name, a name with a version, or the start of a hash."""

    name: str = ""
    version: int | None = None
    digits: str = ""

    @classmethod
    def parse(cls, text: str) -> "Reference | None":
        """The parsed reference, or None if no brick can have such a name.

        >>> Reference.parse("fr-en@2")
        Reference(name='fr-en', version=2, digits='')
        """
        match = _REFERENCE.fullmatch(text)
        if match is None:
            return None
        digits = match["digits"] or ""
        if digits and len(digits) < SHORTEST_PREFIX:
            raise StoreError(
                f"{text!r} gives {len(digits)} digits of a hash; give at least {SHORTEST_PREFIX}."
            )
        version = None if match["version"] is None else int(match["version"])
        return cls(match["name"] or "", version, digits)


def checked_tags(tags: Iterable[str]) -> tuple[str, ...]:
    """The tags, sorted and each once, or a refusal of the first that cannot be one."""
    for tag in tags:
        if not re.fullmatch(TAG_PATTERN, tag):
            raise StoreError(
                f"{tag!r} cannot be a tag; use 1 to 80 characters without space or comma."
            )
    return tuple(sorted(set(tags)))
