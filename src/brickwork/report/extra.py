"""Whether the optional libraries that a report is drawn with are there."""

import importlib.util

from brickwork.errors import MissingExtraError

_LIBRARIES = ("matplotlib", "jinja2")


def require_report() -> None:
    """Refuse before anything long is computed, if the report could not be written at its end.

    Raises:
        MissingExtraError: if matplotlib or jinja2 is not installed.
    """
    if any(importlib.util.find_spec(library) is None for library in _LIBRARIES):
        raise MissingExtraError("the report", "report")
