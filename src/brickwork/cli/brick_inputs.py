"""Bricks by the words that a command names them with."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from brickwork.brick.base import Base
    from brickwork.brick.brick import Brick
    from brickwork.model.load import LoadedModel
    from brickwork.store.store import Store


def name_of(folder: Path) -> str:
    """What a brick is called after its folder; empty if that has no letter and no digit."""
    words = re.findall("[a-z0-9]+(?:[._-][a-z0-9]+)*", folder.absolute().name.lower())
    return "-".join(words)[:80].strip("-._")


@dataclass
class BrickSource:
    """Where a command finds bricks.

    Attributes:
        store: the store's folder; None: the built-in one for the model ``reference``, else the
            user's own.
        model: the base, which a PEFT adapter needs; None: ``reference`` for names in a store, and
            no adapter can be read.
        options: ``device``, ``dtype`` and ``revision`` of the model.
    """

    store: Path | None = None
    model: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def find(self, reference: str) -> "Brick":
        """The brick of a folder, a PEFT adapter's folder, or a reference in the store.

        Raises:
            BrickworkError: if there is none, or it cannot be read.
        """
        from brickwork.brick.folder import is_brick_folder, is_peft_folder, read_brick

        folder = Path(reference).expanduser()
        if is_brick_folder(folder):
            return read_brick(folder)
        if is_peft_folder(folder):
            return self._adapter(folder)
        if folder.is_dir() or "/" in reference or "\\" in reference:
            from brickwork.errors import BrickFormatError

            found = "holds neither brick.json nor adapter_config.json"
            raise BrickFormatError(
                f"a brick was to be read from {reference!r}, which "
                f"{found if folder.is_dir() else 'is no folder'}; name a brick's or an adapter's "
                "folder, or a brick of the store."
            )
        return self._kept(reference)

    @cached_property
    def loaded(self) -> "LoadedModel":
        """The model itself."""
        from brickwork.cli.inputs import open_model
        from brickwork.reference.paths import NAME

        options = {"dtype": "auto", "revision": None, "device": "auto"} | dict(self.options)
        return open_model(self.model or NAME, options, tokenizer=True)

    @property
    def base(self) -> "Base":
        """The model as bricks see it."""
        return self.loaded.base

    def _adapter(self, folder: Path) -> "Brick":
        from brickwork.brick.folder import read_peft
        from brickwork.errors import ConfigurationError

        if self.model is None:
            raise ConfigurationError(
                f"{str(folder)!r} is a PEFT adapter, which does not say which base it is for; "
                "name the base with --model."
            )
        return read_peft(folder, self.base, name_of(folder) or "adapter")

    def folder(self, reference: str) -> Path:
        """The folder of a brick in the store, which stays as it is as long as the brick is kept.

        Raises:
            UnknownNameError: if the store has none of that name.
        """
        with self._opened() as store:
            return store.path(reference)

    def _kept(self, reference: str) -> "Brick":
        with self._opened() as store:
            return store.get(reference)

    def _opened(self) -> "Store":
        from brickwork.reference.builtin import builtin_store
        from brickwork.reference.paths import NAME
        from brickwork.store.store import Store, default_path

        if self.store is not None:
            return Store.open(self.store, create=False)
        if self.model in {None, NAME}:
            return builtin_store()
        return Store.open(default_path())
