"""What ``brickwork grow branches`` reads: the texts of each domain, to train and to measure on."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from brickwork.cli.inputs import data_name, read_labelled

if TYPE_CHECKING:
    from brickwork.measure.instances import Instance
    from brickwork.model.load import LoadedModel
    from brickwork.model.train import Encoded

# What tells texts apart (a prompt, a passage), and its tokens.
Keyed = tuple[str, "Encoded"]


@dataclass(frozen=True, eq=False)
class Domain:
    """One domain: where it is from, what its branch is trained on, and what losses are taken on."""

    source: str
    train: "list[Encoded]"
    measured: "list[Encoded]"


def read_domains(
    loaded: "LoadedModel", asked: Sequence[str], model: str, options: Mapping[str, Any]
) -> dict[str, Domain]:
    """The domains of ``--domain``, each parted in two.

    What any domain is measured on is trained on in none.

    Args:
        loaded: the model, or its outline, with its tokenizer.
        asked: ``NAME=FILE``, or ``NAME`` for a functionality of the labelled data.
        model: as it was written; ``reference`` brings data of its own.
        options: ``data``, ``longest``, ``evaluation`` and ``seed``.

    Raises:
        ConfigurationError: if there are fewer than two domains, or a name comes twice.
        UnknownNameError: if the data has no such functionality.
        DataError: if a file cannot be read, or is too small to be parted.
    """
    from brickwork.errors import ConfigurationError

    files = dict(_parted(one) for one in asked)
    if len(files) < len(asked) or len(files) < 2:
        raise ConfigurationError(
            f"branches of {len(asked)} domains with {len(files)} names were asked for; give at "
            "least two --domain, each with a name of its own."
        )
    texts = _read(loaded, files, model, options)
    held = {name: _held_out(name, keyed, options) for name, keyed in texts.items()}
    measured = frozenset[str]().union(*held.values())
    return {
        name: Domain(
            files[name] and data_name(files[name]),
            [text for key, text in keyed if key not in measured],
            [text for key, text in keyed if key in held[name]],
        )
        for name, keyed in texts.items()
    }


def read_texts(loaded: "LoadedModel", file: str, longest: int) -> list[Keyed]:
    """The texts of a file: plain text, or prompts with responses.

    Of plain text all is to be learned; of instances, their responses.

    Raises:
        DataError: if the file cannot be read, or holds no text.
    """
    from brickwork.cli.carve_inputs import read_examples
    from brickwork.measure.passages import encode_passages, is_plain_text, read_passages
    from brickwork.model.train import Encoded

    if not is_plain_text(file):
        return _encoded(loaded, read_examples(Path(file).expanduser()), longest)
    passages = read_passages(Path(file).expanduser(), longest).texts
    found = []
    for passage in passages:
        found += [
            (passage, Encoded(text.ids, 1))
            for text in encode_passages(loaded, [passage], longest)
            if len(text.ids) > 1
        ]
    return found


def longest_text(loaded: "LoadedModel", longest: int) -> int:
    """Tokens after which a text is cut: as asked, or what the model can take."""
    config = loaded.model.config.get_text_config()
    return min(longest, getattr(config, "max_position_embeddings", longest))


def _parted(asked: str) -> tuple[str, str]:
    name, _, file = asked.partition("=")
    return name, file


def _read(
    loaded: "LoadedModel", files: Mapping[str, str], model: str, options: Mapping[str, Any]
) -> dict[str, list[Keyed]]:
    from brickwork.errors import ConfigurationError, UnknownNameError

    longest = longest_text(loaded, options["longest"])
    data = options["data"] or ("reference" if model == "reference" else None)
    bare = [name for name, file in files.items() if not file]
    if bare and data is None:
        raise ConfigurationError(
            f"the domain {bare[0]!r} has no file, and there is no labelled data that it could be a "
            "functionality of; write --domain NAME=FILE, or name some with --data."
        )
    labelled = read_labelled(str(data), options) if bare else []
    known = {instance.functionality for instance in labelled}
    for name in bare:
        if name not in known:
            raise UnknownNameError("functionality of this data", name, known)
    return {
        name: read_texts(loaded, file, longest)
        if file
        else _encoded(loaded, (i for i in labelled if i.functionality == name), longest)
        for name, file in files.items()
    }


def _encoded(loaded: "LoadedModel", instances: "Iterable[Instance]", longest: int) -> list[Keyed]:
    from brickwork.measure.instances import encode_instances

    every = list(instances)
    encoded = encode_instances(loaded, every, longest).sequences
    return [
        (instance.prompt, text)
        for instance, text in zip(every, encoded, strict=True)
        if text is not None
    ]


def _held_out(name: str, texts: Sequence[Keyed], options: Mapping[str, Any]) -> set[str]:
    """A fifth of the domain at most, drawn at random; equal prompts stay together."""
    import torch

    from brickwork.errors import DataError

    keys = sorted({key for key, _ in texts})
    if len(keys) < 2:
        raise DataError(
            f"the domain {name!r} has {len(texts)} texts, {len(keys)} of them different; a branch "
            "is trained on some and measured on others, so give at least two, better hundreds."
        )
    order = torch.randperm(len(keys), generator=torch.Generator().manual_seed(options["seed"]))
    count = max(1, min(options["evaluation"], len(keys) // 5))
    return {keys[i] for i in order[:count].tolist()}
