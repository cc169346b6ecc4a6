"""Result documents, read without trust: what is wrong is named by its field."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from brickwork.errors import DataError, listed

Document = TypeVar("Document", bound=BaseModel)


def read_document(
    path: Path,
    kind: type[Document],
    contradictions: Callable[[Document], Iterable[str]],
    *,
    format: int,
    what: str,
) -> Document:
    """The document in a file, checked to be one that a report can be drawn from.

    Args:
        path: a JSON file.
        kind: its type.
        contradictions: what cannot be true of a document, by field.
        format: that the file must be of.
        what: a name for the document in messages, with its article.

    Raises:
        DataError: if the file is missing, is not JSON, is of another format, lacks a field or
            contradicts itself; the message names every field in question.
    """
    content = _content(path, what)
    found = content.get("format")
    if found != format:
        raise DataError(
            f"{path} should be of format {format}, but its format is {found!r}; read it with the "
            f"version of Brickwork that wrote it, or {_again(what)}."
        )
    try:
        document = kind.model_validate(content)
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, row['loc']))}: {row['msg']}" for row in error.errors()]
        raise DataError(invalid(str(path), what, problems)) from None
    if problems := list(contradictions(document)):
        raise DataError(invalid(str(path), what, problems))
    return document


def invalid(name: str, what: str, problems: list[str]) -> str:
    """A message that lists what is wrong with a document."""
    return (
        f"{name} is not sound as {what}, in {len(problems)} place(s); mend them or "
        f"{_again(what)}:{listed(problems)}"
    )


def _again(what: str) -> str:
    return f"make the {what.partition(' ')[2]} again"


def _content(path: Path, what: str) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(
            f"{path.parent} holds no {path.name}; name the folder that {what} was written to."
        ) from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}; check the file.") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not JSON: {error}; {_again(what)}.") from None
    if not isinstance(content, dict):
        raise DataError(
            f"{path} should hold one JSON object, but holds a {type(content).__name__}; "
            f"{_again(what)}."
        )
    return content
