"""Brickwork: a language model as an assembly of bricks.

The names below load on first use, so ``import brickwork`` itself loads no torch.

>>> import brickwork
>>> "Brick" in dir(brickwork)
True
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from brickwork.brick.brick import Brick
    from brickwork.brick.configuration import Configuration
    from brickwork.brick.folder import read_brick, write_brick
    from brickwork.brick.spec import BrickSpec
    from brickwork.errors import BrickworkError
    from brickwork.model.load import load_model
    from brickwork.runtime.configured import ConfiguredModel
    from brickwork.store.store import Store

    __version__: str

__all__ = [
    "Brick",
    "BrickSpec",
    "BrickworkError",
    "Configuration",
    "ConfiguredModel",
    "Store",
    "__version__",
    "load_model",
    "read_brick",
    "write_brick",
]

_HOMES = {
    "Brick": "brickwork.brick.brick",
    "BrickSpec": "brickwork.brick.spec",
    "BrickworkError": "brickwork.errors",
    "Configuration": "brickwork.brick.configuration",
    "ConfiguredModel": "brickwork.runtime.configured",
    "Store": "brickwork.store.store",
    "load_model": "brickwork.model.load",
    "read_brick": "brickwork.brick.folder",
    "write_brick": "brickwork.brick.folder",
}


def __getattr__(name: str) -> object:
    if name == "__version__":
        value: object = importlib.import_module("importlib.metadata").version("brickwork")
    elif name in _HOMES:
        value = getattr(importlib.import_module(_HOMES[name]), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
