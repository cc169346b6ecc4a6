"""What ``brickwork edit`` reads: facts, where to edit, options of a method, ledgers, texts."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from brickwork.cli.inputs import open_model, read_labelled

if TYPE_CHECKING:
    from brickwork.brick.base import Fingerprint
    from brickwork.model.load import LoadedModel
    from brickwork.model.train import Encoded
    from brickwork.update.facts import Fact
    from brickwork.update.ledger import Ledger
    from brickwork.update.method import EditSite

_SITE = re.compile(r"layers\.(?P<layers>[0-9, -]+)(?:@(?P<place>[a-z_]+))?")


def open_edited(model: str, options: Mapping[str, Any]) -> "LoadedModel":
    """The model that is edited, or that runs edits; ``reference`` in float32 by default.

    The packaged weights are small, and a CPU computes in float32 what it would in bfloat16 only
    slowly. The fingerprint is the same in both.
    """
    from brickwork.reference.paths import NAME

    small = model == NAME and options["dtype"] == "auto"
    return open_model(
        model, {"revision": None, **options, **({"dtype": "float32"} if small else {})}
    )


def read_given(options: Mapping[str, Any]) -> "list[Fact]":
    """The facts of ``--edits``, or the one of the command line.

    Raises:
        UnknownNameError: if an id of ``--only`` is none of the file's.
    """
    from brickwork.errors import UnknownNameError
    from brickwork.update.fact_files import read_facts, wrapped
    from brickwork.update.facts import Fact

    if options["edits"] is None:
        names = ("subject", "prompt", "target", "target_true")
        subject, prompt, target, true = (options[name] or "" for name in names)
        id = "-".join(re.findall(r"\w+", subject.lower())) or "fact"
        return [wrapped(Fact(id, subject, prompt, target, true), options["template"])]
    only = options["only"]
    most = None if only else options["first"]
    facts = read_facts(options["edits"], template=options["template"], most=most)
    known = {fact.id: fact for fact in facts}
    for id in only:
        if id not in known:
            raise UnknownNameError(f"fact in {options['edits']}", id, known)
    return [known[id] for id in dict.fromkeys(only)] if only else facts


def parse_settings(settings: Sequence[str]) -> dict[str, Any]:
    """Options of a method as ``name=value`` says them; values are JSON, or else text.

    >>> parse_settings(["steps=20", "solver=adam"])
    {'steps': 20, 'solver': 'adam'}

    Raises:
        ConfigurationError: if there is no ``=``, or a name comes twice.
    """
    from brickwork.errors import ConfigurationError

    found: dict[str, Any] = {}
    for setting in settings:
        name, sign, value = setting.partition("=")
        name = name.strip().replace("-", "_")
        if not (name and sign) or name in found:
            problem = "comes twice" if name in found else "is no option with a value"
            raise ConfigurationError(
                f"--set {setting!r} {problem}; write name=value, once for each."
            )
        try:
            found[name] = json.loads(value)
        except ValueError:
            found[name] = value.strip()
    return found


def parse_site(text: str, loaded: "LoadedModel") -> "EditSite":
    """Where to edit: ``layers.2-4@last``.

    Raises:
        ConfigurationError: if it is no site, or the model has no such layer.
        UnknownNameError: if there is no such place in a prompt.
    """
    from brickwork.brick.address import parse_numbers
    from brickwork.errors import ConfigurationError, UnknownNameError
    from brickwork.model.parts import layers_of
    from brickwork.update.method import EditSite
    from brickwork.update.words import PLACES

    found = _SITE.fullmatch(text.strip())
    if not found:
        raise ConfigurationError(
            f"{text!r} is no place to edit; write layers and a token of the prompt, as "
            "layers.2-4@last."
        )
    place = found["place"] or "last"
    if place not in PLACES:
        raise UnknownNameError("place in a prompt", place, PLACES)
    layers, depth = sorted(parse_numbers(found["layers"])), layers_of(loaded.model)
    if layers[-1] >= depth:
        raise ConfigurationError(
            f"{text!r} names layer {layers[-1]}, but {loaded.name} has {depth}, from 0 to "
            f"{depth - 1}."
        )
    return EditSite(tuple(layers), place)


def open_ledger(
    folder: Path | None, base: "Fingerprint | None", *, create: bool = False
) -> "Ledger | None":
    """The ledger in a folder; None if there is none yet and none is to be made."""
    from brickwork.update.ledger import Ledger

    if folder is None:
        return None
    if create and base is not None and not _holds_anything(folder):
        return Ledger.create(folder, base)
    return Ledger.open(folder, base) if create or _holds_anything(folder) else None


def _holds_anything(folder: Path) -> bool:
    return folder.exists() and (not folder.is_dir() or any(folder.iterdir()))


def data_of(model: str, options: Mapping[str, Any]) -> str | None:
    """The corpus: the one that is named, or for ``reference`` the instances that ship with it."""
    from brickwork.reference.paths import NAME

    data: str | None = options["data"]
    return data if data is not None else (NAME if model == NAME else None)


def read_corpus(
    loaded: "LoadedModel", data: str, options: Mapping[str, Any]
) -> "tuple[list[Encoded], str]":
    """Texts that have nothing to do with the facts, as tokens, and what identifies them.

    Args:
        loaded: the model.
        data: labelled instances as every command reads them, or plain text (``.txt``, ``.txt.gz``).
        options: ``longest``, where texts are cut, ``tokens`` and ``seed``.
    """
    from brickwork.measure.instances import content_hash, encode_instances
    from brickwork.measure.passages import encode_passages, is_plain_text, read_passages

    config = loaded.model.config.get_text_config()
    longest = min(options["longest"], getattr(config, "max_position_embeddings", 1 << 30))
    if is_plain_text(data):
        passages = read_passages(Path(data).expanduser(), longest)
        tokens, seed = options["tokens"], options["seed"]
        found = encode_passages(loaded, passages.texts, longest, tokens=tokens, seed=seed)
        sha256 = passages.sha256
    else:
        instances = read_labelled(data, {"mapping": None, "instances": None, **options})
        encoded = encode_instances(loaded, instances, longest).sequences
        found, sha256 = [one for one in encoded if one is not None], content_hash(instances)
    return found, hashlib.sha256(f"{sha256}:{longest}".encode()).hexdigest()
