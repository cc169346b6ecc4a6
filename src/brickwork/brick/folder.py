"""A brick on disk: ``brick.json`` and one safetensors file.

The folder of a form that PEFT has is at the same time a PEFT adapter folder
(``adapter_config.json``, ``adapter_model.safetensors``), so PEFT, vLLM and others load it as it
is.
"""

from pathlib import Path
from typing import Any

from brickwork.brick.base import Base
from brickwork.brick.brick import Brick
from brickwork.brick.check import require_fit, require_well_formed
from brickwork.brick.files import json_bytes, read_json, read_tensors, tensor_bytes, write_folder
from brickwork.brick.forms import find_form
from brickwork.brick.peft import decode_for, from_peft, sites_of_base, to_peft
from brickwork.brick.spec import Function, parse_spec
from brickwork.errors import BrickFormatError

SPEC_FILE, CONFIG_FILE = "brick.json", "adapter_config.json"
PEFT_TENSORS, OWN_TENSORS = "adapter_model.safetensors", "tensors.safetensors"
FORMAT = 1


def write_brick(brick: Brick, folder: Path, *, replace: bool = False) -> None:
    """Write the brick as a folder, all of it or nothing.

    Args:
        replace: put it in the place of a brick or adapter that stands there; everything in that
            folder goes. Any other folder is left alone.

    Raises:
        BrickFormatError: if the brick is not well formed, or the folder is taken.
    """
    require_well_formed(brick)
    files = brick_files(brick)
    if folder.exists() or folder.is_symlink():
        if not replace:
            raise BrickFormatError(f"{folder} exists; choose another folder or ask to replace it.")
        if not (is_brick_folder(folder) or is_peft_folder(folder)):
            raise BrickFormatError(
                f"{folder} exists and holds no brick, so it is not replaced; choose another folder."
            )
    write_folder(files, folder)


def brick_files(brick: Brick) -> dict[str, bytes]:
    """The files of a brick's folder, by name; equal bricks give equal bytes."""
    document = {"format": FORMAT, "hash": brick.hash, **brick.spec.model_dump(mode="json")}
    files = {SPEC_FILE: json_bytes(SPEC_FILE, document)}
    if find_form(brick.spec.form).peft:
        config, tensors = to_peft(brick)
        files[CONFIG_FILE] = json_bytes(CONFIG_FILE, config)
        files[PEFT_TENSORS] = tensor_bytes(tensors)
    else:
        files[OWN_TENSORS] = tensor_bytes(brick.tensors)
    return files


def read_brick(folder: Path) -> Brick:
    """The brick of a folder that ``write_brick`` wrote, checked against its own hash.

    Raises:
        BrickFormatError: if a file is missing, damaged, changed or not what it should be.
    """
    document = read_json(folder, SPEC_FILE)
    written = document.pop("format", None)
    if type(written) is not int or written != FORMAT:
        raise BrickFormatError(
            f"{folder / SPEC_FILE} is of format {written!r}; this version reads {FORMAT}."
        )
    wanted = document.pop("hash", None)
    spec = parse_spec(document, str(folder / SPEC_FILE))
    if find_form(spec.form).peft:
        config = read_json(folder, CONFIG_FILE)
        tensors = decode_for(spec, config, read_tensors(folder, PEFT_TENSORS))
    else:
        tensors = read_tensors(folder, OWN_TENSORS)
    brick = Brick(spec, tensors)
    require_well_formed(brick)
    if wanted is not None and wanted != brick.hash:
        raise BrickFormatError(
            f"{folder} has changed since it was written (hash {brick.hash[:12]}, expected "
            f"{str(wanted)[:12]}); restore it, or, if you meant to change it, delete the field "
            "'hash' from brick.json."
        )
    return brick


def read_peft(
    folder: Path,
    base: Base,
    name: str,
    *,
    function: Function | None = None,
    licence: str = "",
) -> Brick:
    """A PEFT adapter folder as a brick for ``base``, with its configuration kept in the spec.

    PEFT writes nothing by which the base could be recognised, so the caller says which it is; the
    adapter's names and shapes are checked against it.

    Raises:
        BrickFormatError: if the adapter's type is not supported or something would be lost.
        MisfitError: if it does not fit the base.
    """
    config = read_json(folder, CONFIG_FILE)
    decoded = from_peft(config, read_tensors(folder, PEFT_TENSORS), *sites_of_base(base))
    held = {tensor.rpartition("/")[0] for tensor in decoded.tensors}
    in_order = [path for path in base.sites if path in held]
    document: dict[str, Any] = {
        "name": name,
        "form": decoded.form,
        "base": base.fingerprint,
        "sites": (*in_order, *sorted(held.difference(in_order))),
        "options": decoded.options,
        "function": function or Function(),
        "lineage": {"method": "imported from PEFT"},
        "licence": licence,
        "peft": config,
    }
    spec = parse_spec(document, str(folder))
    brick = Brick(spec, decoded.tensors)
    require_fit(brick, base)
    return brick


def is_brick_folder(folder: Path) -> bool:
    """Whether the folder holds a brick in Brickwork's own format."""
    return (folder / SPEC_FILE).is_file()


def is_peft_folder(folder: Path) -> bool:
    """Whether the folder holds a PEFT adapter."""
    return (folder / CONFIG_FILE).is_file()
