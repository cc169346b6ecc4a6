"""What all tables of rows have in common: rows of other packages, and a row by its name."""

from collections.abc import Iterable, Mapping
from importlib.metadata import entry_points
from typing import Any, Protocol, TypeVar

from brickwork.errors import BrickworkError, UnknownNameError


class Named(Protocol):
    """A row that its table knows by a name."""

    @property
    def name(self) -> str:
        """The name."""


Row = TypeVar("Row", bound=Named)


def collect_rows(
    rows: Iterable[Row], group: str, what: str, error: type[BrickworkError]
) -> dict[str, Row]:
    """All rows by name, those of installed packages included.

    Args:
        rows: our own.
        group: of the entry points that add rows.
        what: a row, in words, for the message.
        error: raised if two rows have one name.
    """
    found = {row.name: row for row in rows}
    for entry in entry_points(group=group):
        row: Any = entry.load()
        if row.name in found:
            raise error(f"two packages define the {what} {row.name!r}; remove one.")
        found[row.name] = row
    return found


def find_row(rows: Mapping[str, Row], what: str, name: str) -> Row:
    """The row of that name.

    Raises:
        UnknownNameError: if there is none; lists the nearest names.
    """
    if name not in rows:
        raise UnknownNameError(what, name, rows)
    return rows[name]
