"""A checkpoint on this machine: a local folder as it is, or a Hub id that is fetched first.

Only what transformers reads from safetensors is fetched and accepted. Pickled weights, code that
comes with a model, and adapters beside it are refused here, before transformers sees the folder.
"""

import json
import re
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from brickwork.errors import ModelError

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "vocab.txt",
    "merges.txt", "added_tokens.json", "special_tokens_map.json",
)  # fmt: skip
_BESIDE = (
    "generation_config.json", "preprocessor_config.json", "processor_config.json",
    "video_preprocessor_config.json", "chat_template.json",
)  # fmt: skip
_TEMPLATES = ("*.jinja", "additional_chat_templates/*.jinja")

_HUB_ID = re.compile(r"(?:[A-Za-z0-9][\w.-]*/)?[A-Za-z0-9][\w.-]*", re.ASCII)
_SMALL_FILES = [CONFIG, "generation_config.json", INDEX, *TOKENIZER_FILES, "*.jinja"]
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.h5", "*.msgpack")


def find_checkpoint(name_or_path: str, revision: str | None, *, weights: bool) -> Path:
    """The folder that holds the model.

    Args:
        name_or_path: a local folder, or a Hub id, which is fetched into the Hub's cache.
        revision: branch, tag or commit of a Hub id.
        weights: whether the weights are needed; without them they are neither fetched nor
            looked for.

    Raises:
        ModelError: if there is no such folder or Hub model, or if it cannot be loaded safely.
    """
    folder = Path(name_or_path).expanduser()
    if name_or_path and folder.is_dir():
        if revision is not None:
            raise ModelError(
                f"{name_or_path!r} is a local folder, so it has no revision {revision!r}; leave "
                "the revision out."
            )
    elif folder.is_file():
        raise ModelError(f"{name_or_path!r} is a file; name the folder that holds {CONFIG}.")
    elif not _HUB_ID.fullmatch(name_or_path):
        raise ModelError(
            f"there is no folder {name_or_path!r}, and it is no Hub id either; write the path of "
            "a folder, or an id like 'org/name'."
        )
    else:
        folder = _fetch(name_or_path, revision, weights=weights)
    _check(folder, name_or_path, weights=weights)
    return folder


def files_beside(folder: Path, *, tokenizer: bool = True) -> dict[str, bytes]:
    """The files of a checkpoint that are neither weights nor its configuration, by name.

    Args:
        folder: of the checkpoint.
        tokenizer: whether those of the tokenizer are among them, its chat templates included.
    """
    names = [*_BESIDE, *(TOKENIZER_FILES if tokenizer else ())]
    paths = [folder / name for name in names]
    if tokenizer:
        paths += [path for pattern in _TEMPLATES for path in folder.glob(pattern)]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths if path.is_file()}


def _fetch(hub_id: str, revision: str | None, *, weights: bool) -> Path:
    """The snapshot of a Hub model in the cache, after fetching what is missing."""
    folder = _download(hub_id, revision, _SMALL_FILES)
    if weights:
        # The folder is named after the commit, so that both calls see one state of the model.
        files = sorted(_shards(folder / INDEX)) if (folder / INDEX).exists() else [WEIGHTS]
        folder = _download(hub_id, folder.name, files)
    return folder


def _download(hub_id: str, revision: str | None, patterns: list[str]) -> Path:
    tried = f"{hub_id!r}" + (f" at revision {revision!r}" if revision else "")
    try:
        return Path(snapshot_download(hub_id, revision=revision, allow_patterns=patterns))
    except GatedRepoError:
        advice = "the Hub gives it only to those who accepted its terms; do so there and log in."
    except RepositoryNotFoundError:
        advice = (
            f"the Hub has no model of that id that you may see, and there is no folder {hub_id!r} "
            "here; check the spelling, or log in if the model is private."
        )
    except RevisionNotFoundError:
        advice = "the model has no such revision; leave it out for the newest."
    except LocalEntryNotFoundError:
        advice = (
            f"it is not on this machine, and the Hub was not reached (or not asked: offline); "
            f"connect, or name a local folder (there is no folder {hub_id!r} here)."
        )
    except Exception as error:  # the errors of the Hub's HTTP library have no public type
        advice = f"the Hub could not be read: {type(error).__name__}: {error}"
    raise ModelError(f"could not fetch the model {tried}: {advice}")


def _check(folder: Path, name: str, *, weights: bool) -> None:
    """Refuse a folder that transformers would not load, or not only from safetensors."""
    if not (folder / CONFIG).is_file():
        raise ModelError(
            f"the model {name!r} has no {CONFIG}; a checkpoint is a folder in the Hugging Face "
            f"format, with {CONFIG} and {WEIGHTS}."
        )
    if (folder / "adapter_config.json").exists():
        raise ModelError(
            f"the model {name!r} has an adapter beside it (adapter_config.json); keep it in a "
            "folder of its own and plug it in as a brick."
        )
    if any(folder.glob("shard-*.safetensors")):
        raise ModelError(
            f"the model {name!r} is a distributed checkpoint (shard-*.safetensors); save it with "
            "save_pretrained instead."
        )
    if weights:
        _check_weights(folder, name)


def _check_weights(folder: Path, name: str) -> None:
    if (folder / WEIGHTS).is_file():
        return
    if (folder / INDEX).is_file():
        absent = sorted(file for file in _shards(folder / INDEX) if not (folder / file).is_file())
        if absent:
            raise ModelError(
                f"the model {name!r} lacks the weight files {', '.join(absent[:5])} that its "
                f"{INDEX} names; fetch or copy it again."
            )
        return
    pickles = sorted(file.name for pattern in _PICKLES for file in folder.glob(pattern))
    if pickles:
        raise ModelError(
            f"the model {name!r} has its weights only as {', '.join(pickles[:5])}, and reading "
            "those can run code; convert them to safetensors (save_pretrained does) first."
        )
    raise ModelError(f"the model {name!r} has no weights: neither {WEIGHTS} nor {INDEX}.")


def _shards(index: Path) -> set[str]:
    """The files that an index of weights names, all in its own folder."""
    try:
        files = {str(file) for file in json.loads(index.read_text("utf-8"))["weight_map"].values()}
    except (ValueError, KeyError, AttributeError, TypeError):
        raise ModelError(f"{index.name} is damaged; it must map weights to files.") from None
    strangers = [file for file in files if Path(file).name != file or file[-12:] != ".safetensors"]
    if strangers:
        raise ModelError(f"{index.name} names {strangers[0]!r}, no safetensors file beside it.")
    return files
