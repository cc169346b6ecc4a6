"""One way to name any part of a model, down to single neurons.

``layers.3.mlp.neurons[17,99]``, ``layers.3.attn.heads[4]``, ``layers.3.attn.q``, ``layers.12``,
``embed``. An address is the same in every family; the model room knows which modules it means.
"""

import re
from dataclasses import dataclass

from brickwork.errors import AddressError

_ADDRESS = re.compile(
    r"(?:layers\.(?P<layer>[0-9]{1,9}))?"
    r"(?:(?:^|(?<=[0-9])\.)(?P<part>[a-z_][a-z0-9_]*(?:\.[a-z_][a-z0-9_]*)*)(?P<index>\[[^\]]*\])?)?"
)
_WHOLE_MODEL_PARTS = ("embed", "unembed", "final_norm", "positions")
_MOST_UNITS = 1_000_000


@dataclass(frozen=True)
class Address:
    """A part of a model: a layer (or the whole model), a role inside it, and chosen units.

    >>> Address.parse("layers.3.mlp.neurons[17,99]")
    Address(layer=3, part='mlp.neurons', units=(17, 99))
    >>> str(Address(layer=12))
    'layers.12'
    """

    layer: int | None = None
    part: str = ""
    units: tuple[int, ...] = ()

    @classmethod
    def parse(cls, text: str) -> "Address":
        """The address that ``text`` names; ranges such as ``[4-7]`` count both ends.

        Raises:
            AddressError: if the text is not an address.
        """
        match = _ADDRESS.fullmatch(text)
        if not text or not match:
            raise AddressError(
                f"{text!r} is not an address; write for example 'layers.3.attn.heads[4]', "
                "'layers.3.mlp.neurons[17,99]', 'layers.12' or 'embed'."
            )
        layer = None if match["layer"] is None else int(match["layer"])
        part = match["part"] or ""
        if layer is None and part not in _WHOLE_MODEL_PARTS:
            raise AddressError(
                f"{text!r} names no layer; only {', '.join(_WHOLE_MODEL_PARTS)} stand outside "
                "the layers."
            )
        return cls(layer, part, _units(match["index"], text))

    def __str__(self) -> str:
        where = [] if self.layer is None else [f"layers.{self.layer}"]
        units = f"[{','.join(map(str, self.units))}]" if self.units else ""
        return ".".join([*where, *([self.part] if self.part else [])]) + units


def parse_numbers(text: str) -> tuple[int, ...]:
    """Numbers as an address lists them: single ones and ranges that count both ends.

    >>> parse_numbers("3, 5-7")
    (3, 5, 6, 7)

    Raises:
        AddressError: if the text is no such list, or names a number twice.
    """
    return _units(f"[{text}]", text)


def _units(index: str | None, text: str) -> tuple[int, ...]:
    if index is None:
        return ()
    units: list[int] = []
    for piece in index[1:-1].split(","):
        span = re.fullmatch(r" *([0-9]{1,9})(?:-([0-9]{1,9}))? *", piece)
        if not span:
            raise AddressError(f"{text!r}: {piece!r} is neither a number nor a range like 4-7.")
        first, last = int(span[1]), int(span[2] or span[1])
        if last < first:
            raise AddressError(f"{text!r}: the range {piece!r} has no units; is it turned round?")
        if len(units) + last - first >= _MOST_UNITS:
            raise AddressError(f"{text!r} names more than {_MOST_UNITS:,} units.")
        units.extend(range(first, last + 1))
    if len(set(units)) != len(units):
        raise AddressError(f"{text!r} names a unit twice.")
    return tuple(units)
