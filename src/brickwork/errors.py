"""What can go wrong, by whose fault: every ``BrickworkError`` is the caller's to mend.

The message says what was asked, what was found, and what to do next. Anything else that escapes
is a defect of Brickwork.
"""

import difflib
from collections.abc import Iterable


class BrickworkError(Exception):
    """Base of all errors that a caller can mend."""


class UnknownNameError(BrickworkError):
    """A name that no row of a table, no brick and no address answers to."""

    def __init__(self, what: str, name: str, known: Iterable[str]) -> None:
        names = sorted(known)
        near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(map(repr, near))}?" if near else _listing(names)
        super().__init__(f"no {what} is called {name!r}; {hint}")


def listed(problems: list[str], most: int = 8) -> str:
    """Problems as the lines of a list, those beyond ``most`` as a number."""
    shown = [f"\n  - {problem}" for problem in problems[:most]]
    more = len(problems) - most
    return "".join([*shown, f"\n  - and {more} more"] if more > 0 else shown)


def _listing(names: list[str]) -> str:
    if not names:
        return "there are none yet."
    shown = ", ".join(names[:12])
    return f"known: {shown}{', ...' if len(names) > 12 else ''}."


class AddressError(BrickworkError):
    """An address that cannot be read, or that the model has no such part for."""


class BrickFormatError(BrickworkError):
    """A brick, or a folder of one, that is not well formed."""


class MisfitError(BrickworkError):
    """A well-formed brick that does not fit this base; carries every reason."""

    def __init__(self, name: str, problems: list[str]) -> None:
        self.problems = problems
        super().__init__(f"brick {name!r} does not fit this base:{listed(problems)}")


class ConfigurationError(BrickworkError):
    """A configuration that is not valid, or that this model cannot carry out."""


class StoreError(BrickworkError):
    """A store that refuses what was asked of it, or that is damaged."""


class ModelError(BrickworkError):
    """A model that cannot be loaded, or of a family that no row describes."""


class MergeError(BrickworkError):
    """Models, bricks or tensors that cannot be merged as asked."""


class EditError(BrickworkError):
    """Facts, edits or ledgers that do not fit each other, or that a model cannot be edited by."""


class GrowthError(BrickworkError):
    """A growth that a model cannot have, or tasks and branches that do not go together."""


class DataError(BrickworkError):
    """Instances or texts that are missing or not of the form asked for."""


class MissingExtraError(BrickworkError):
    """A feature whose optional dependency is not installed."""

    def __init__(self, feature: str, extra: str) -> None:
        super().__init__(
            f"{feature} needs an optional dependency that is not installed; "
            f"install it with: pip install 'brickwork[{extra}]'"
        )
