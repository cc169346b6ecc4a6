"""What an address means in a model: which rows and columns of which parameters.

An address names a role (``layers.3.mlp.down``; the words are in ``architecture.ROLES``), a block
(``layers.3``), or units of a layer (``layers.3.mlp.neurons[17,99]``; the words are in ``units``).
Units count from 0; all are meant if none is named.
"""

from transformers import PreTrainedModel

from brickwork.brick.address import Address
from brickwork.errors import AddressError
from brickwork.model.architecture import FFN_ROLES, ROLES
from brickwork.model.parts import (
    Slice,
    ffn_row_of,
    find_module,
    find_part,
    layers_of,
    role_path,
)
from brickwork.model.units import UNITS, unit_counts

_OUTSIDE = ("embed", "positions", "unembed", "final_norm")


def slices_at(model: PreTrainedModel, address: Address) -> tuple[Slice, ...]:
    """The parameters, or the parts of them, that an address names.

    Raises:
        AddressError: if the model has no such layer, part or unit; says what it has.
        UnknownNameError: if no row describes the model's family.
    """
    layer = address.layer
    if layer is not None and layer >= layers_of(model):
        raise AddressError(
            f"there is no {str(address)!r}: this model has the layers 0 to {layers_of(model) - 1}."
        )
    if layer is not None and (size := unit_counts(model, layer).get(address.part)):
        outside = [unit for unit in address.units if unit >= size]
        if outside:
            raise AddressError(
                f"there is no unit {outside[0]} in {str(address)!r}: layers.{layer} has "
                f"{address.part}[0-{size - 1}]."
            )
        return tuple(UNITS[address.part](model, layer, address.units or range(size)))
    slices = () if address.part == "block" else _whole(model, address.part or "block", layer)
    if not slices or address.units:
        raise AddressError(_what_there_is(model, address, found=bool(slices)))
    return slices


def _whole(model: PreTrainedModel, role: str, layer: int | None) -> tuple[Slice, ...]:
    """All parameters of a role; empty if the model has no such role there."""
    if role not in ROLES or (layer is None) != (role in _OUTSIDE):
        return ()
    path = role_path(model, role, layer)
    module = find_module(model, path)
    if module is not None:
        return tuple(Slice(f"{path}.{name}") for name, _ in module.named_parameters())
    if layer is None:
        return ()
    if role == "mlp":
        roles = FFN_ROLES[ffn_row_of(model, layer).form]
        return tuple(part for inner in roles for part in _whole(model, inner, layer))
    part = find_part(model, role, layer)
    return tuple(part.rows(range(len(part.outputs)))) if part else ()


def _what_there_is(model: PreTrainedModel, address: Address, *, found: bool) -> str:
    if found:
        return (
            f"{str(address)!r} numbers units of a part that has none; the parts with units are "
            f"{', '.join(UNITS)}."
        )
    layer = address.layer
    known = [role for role in ROLES if role != "block" and _whole(model, role, layer)]
    known += [] if layer is None else [u for u in unit_counts(model, layer) if u not in known]
    where = "outside its layers" if layer is None else f"in layers.{layer}"
    return f"there is no {str(address)!r}: {where} this model has {', '.join(known)}."
