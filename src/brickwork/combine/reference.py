"""How recipes name models: ``model``, ``model@revision``, ``base+lora``, or a mapping."""

from pathlib import Path
from typing import Any

from brickwork.combine.plan import ModelRef


def parse_reference(written: Any) -> ModelRef:
    """A model as a recipe names it.

    A folder that exists is a folder, whatever its path contains; mergekit refuses ``@`` and reads
    ``+`` as an adapter.

    Raises:
        ValueError: if it is none of the forms.

    >>> parse_reference("org/base@v2+org/adapter@main")
    ModelRef(model='org/base', revision='v2', lora='org/adapter', lora_revision='main')
    """
    if isinstance(written, ModelRef):
        return written
    if isinstance(written, dict):
        return _from_mapping(written)
    if not isinstance(written, str) or not written:
        raise ValueError("a model is a folder, a Hub id, or a mapping with `model` and `lora`")
    if _is_folder(written):
        return ModelRef(written)
    model, lora = _split_adapter(written)
    return ModelRef(*_split_revision(model), *(_split_revision(lora) if lora else ()))


def _split_adapter(written: str) -> tuple[str, str]:
    parts = written.split("+")
    splits = [("+".join(parts[:n]), "+".join(parts[n:])) for n in range(1, len(parts))]
    if len(splits) > 1:  # only folders have a + in their names
        splits = [pair for pair in splits if all(_is_folder(p) or "+" not in p for p in pair)]
    if not splits and len(parts) == 1:
        return written, ""
    if len(splits) != 1 or not all(splits[0]):
        raise ValueError("a model with an adapter is written base+adapter, with one +")
    return splits[0]


def _split_revision(written: str) -> tuple[str, str | None]:
    if _is_folder(written) or "@" not in written:
        return written, None
    name, _, revision = written.partition("@")
    if not name or not revision or "@" in revision:
        raise ValueError("a revision is written model@revision, with one @")
    return name, revision


def _from_mapping(written: dict[Any, Any]) -> ModelRef:
    strangers = [str(key) for key in written if key not in ("model", "lora")]
    if strangers or not written.get("model"):
        raise ValueError(
            "a model as a mapping has the keys model and, if wanted, lora"
            + (f", not {', '.join(strangers)}" if strangers else "; model is missing")
        )
    lora = _path(written["lora"]) if written.get("lora") else ()
    return ModelRef(*_path(written["model"]), *lora)


def _path(written: Any) -> tuple[str, str | None]:
    if isinstance(written, str):
        return _split_revision(written)
    if not isinstance(written, dict) or not {"path"} <= written.keys() <= {"path", "revision"}:
        raise ValueError("model and lora are names, or mappings with path and revision")
    name, revision = written["path"], written.get("revision")
    if not isinstance(name, str) or not name or not isinstance(revision, str | None):
        raise ValueError("path and revision are texts")
    return name, revision or None


def _is_folder(text: str) -> bool:
    return "\0" not in text and Path(text).expanduser().is_dir()
