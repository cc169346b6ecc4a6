"""Weights that are made one by one, written as a checkpoint that transformers loads."""

import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from brickwork.brick.durable import require_free, sync_folder
from brickwork.brick.files import json_bytes
from brickwork.errors import ModelError
from brickwork.model.checkpoint import CONFIG, INDEX
from brickwork.model.export import make_durable
from brickwork.model.saved import as_saved
from brickwork.model.shard_layout import Shape, ShardLayout, lay_out
from brickwork.model.weights import Weights

SHARD_BYTES = 5_000_000_000


def planned_layout(weights: Weights, shard_bytes: int = SHARD_BYTES) -> ShardLayout:
    """Where every tensor of the checkpoint will lie; no weight is made for it."""
    shapes = []
    for path, parameter in weights.outline.named_parameters():
        outline = torch.empty(parameter.shape, dtype=weights.dtype_of(path), device="meta")
        saved = as_saved(weights.outline, {path: outline})
        shapes += [Shape(name, t.dtype, tuple(t.shape)) for name, t in saved.items()]
    return lay_out(shapes, shard_bytes)


def write_weights(
    weights: Weights,
    folder: Path,
    files: Mapping[str, bytes],
    *,
    shard_bytes: int = SHARD_BYTES,
    advance: Callable[[int], None] = lambda _bytes: None,
) -> ShardLayout:
    """Write a model as a new checkpoint, holding one parameter at a time: all of it, or nothing.

    If the process is killed, what is written so far lies in a folder ``.brickwork-...`` beside.

    Args:
        weights: of the model.
        folder: where; there must be nothing yet.
        files: what lies beside the weights, by name: tokenizer, generation settings, record.
        shard_bytes: most bytes of tensors in a file.
        advance: told the bytes that have just been written.

    Raises:
        ModelError: if something is there already, there is no room, or it cannot be written.
    """
    require_free(folder, "a model", ModelError)
    layout = planned_layout(weights, shard_bytes)
    folder = folder.absolute()
    workshop = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        _require_room(layout, folder.parent)
        workshop = Path(tempfile.mkdtemp(prefix=".brickwork-", dir=folder.parent))
        new = workshop / "new"
        new.mkdir()
        _begin(layout, new)
        for path, _ in weights.outline.named_parameters():
            whole = weights.tensor(path)
            assert whole.dtype == weights.dtype_of(path), f"{path} would not fit its place"
            for name, tensor in as_saved(weights.outline, {path: whole}).items():
                _write(tensor, layout, name, new)
                advance(tensor.numel() * tensor.element_size())
        weights.outline.config.save_pretrained(new)
        config = (new / CONFIG).read_bytes()
        index = {} if layout.index is None else {INDEX: json_bytes(INDEX, layout.index)}
        for name, content in {**files, **index, CONFIG: config}.items():
            place = new / name
            place.parent.mkdir(exist_ok=True)
            place.write_bytes(content)
        make_durable(new)
        require_free(folder, "a model", ModelError)
        new.rename(folder)
        sync_folder(folder.parent)
    except OSError as error:
        raise ModelError(
            f"the model {folder.name!r} could not be written ({error}); mend that and begin again, "
            "or name a folder elsewhere."
        ) from error
    finally:
        if workshop is not None:
            shutil.rmtree(workshop, ignore_errors=True)
    return layout


def _require_room(layout: ShardLayout, place: Path) -> None:
    needed, free = sum(layout.sizes.values()), shutil.disk_usage(place).free
    if needed > free:
        raise ModelError(
            f"the model needs {needed:,} bytes where it is to be written, and {free:,} are free "
            "there; make room, or name a folder on another disk."
        )


def _begin(layout: ShardLayout, folder: Path) -> None:
    for file, size in layout.sizes.items():
        with (folder / file).open("xb") as stream:
            stream.write(layout.headers[file])
            stream.truncate(size)


def _write(tensor: Tensor, layout: ShardLayout, name: str, folder: Path) -> None:
    place = layout.places[name]
    with (folder / place.file).open("r+b", buffering=0) as file:
        file.seek(place.offset)
        left = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data
        while left:
            left = left[file.write(left) or 0 :]
