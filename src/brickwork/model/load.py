"""A model that is ready to use: loaded from a folder or the Hub, or taken as it is."""

import copy
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from brickwork.brick.base import Base
from brickwork.errors import ModelError
from brickwork.model.architecture import Architecture, architectures
from brickwork.model.checkpoint import TOKENIZER_FILES, find_checkpoint
from brickwork.model.config import read_config, transformers_at
from brickwork.model.device import find_device, find_dtype
from brickwork.model.fingerprint import fingerprint
from brickwork.model.sockets import sites_of

# The attention and the experts are computed by the defaults of transformers: what a configuration
# asks for instead can name code on the Hub.
OWN_CODE_ONLY: dict[str, Any] = {
    "trust_remote_code": False,
    "attn_implementation": None,
    "experts_implementation": None,
}


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """A model with what belongs to it; ``architecture`` is None if no row describes its family."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase | None
    name: str
    architecture: Architecture | None

    @cached_property
    def base(self) -> Base:
        """The model as bricks see it. Reads all weights on first use, then keeps the answer."""
        return Base(fingerprint(self.model, self.tokenizer, self.name), sites_of(self.model))

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.model.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The number format of the weights."""
        return next(self.model.parameters()).dtype


def wrap_model(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None = None, name: str = ""
) -> LoadedModel:
    """A model that is already in memory, as it is: same object, same mode, same weights."""
    row = architectures().get(model.config.model_type)
    return LoadedModel(model, tokenizer, name, row)


def load_model(
    name_or_path: str,
    *,
    device: str = "auto",
    dtype: str = "auto",
    revision: str | None = None,
    tokenizer: bool = True,
    name: str = "",
) -> LoadedModel:
    """A model to evaluate, exactly as it was saved.

    Nothing is fetched unless a Hub id is named, code that comes with a model is never run, and
    weights are read from safetensors only.

    Args:
        name_or_path: a local folder in the Hugging Face format, or a Hub id.
        device: a torch device; ``auto`` is ``cuda`` where there is one, else ``cpu``.
        dtype: one of ``device.DTYPES``; ``auto`` is the checkpoint's own.
        revision: branch, tag or commit of a Hub id.
        tokenizer: whether to load the tokenizer too, if the model has one.
        name: what to call the model; by default its Hub id, or the name of its folder.

    Raises:
        ModelError: if the model is not found, or its weights are not all there and none besides.
    """
    target, number_format = find_device(device), find_dtype(dtype)
    folder = find_checkpoint(name_or_path, revision, weights=True)
    config = read_config(folder, name_or_path)
    with transformers_at(f"load the weights of {name_or_path!r}"):
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            config=config,
            dtype=number_format,
            use_safetensors=True,
            local_files_only=True,
            ignore_mismatched_sizes=True,  # they are refused below, by name
            output_loading_info=True,
            **OWN_CODE_ONLY,
        )
    model, report = loaded
    _require_whole(report, name_or_path)
    words = _read_tokenizer(folder, name_or_path) if tokenizer else None
    return wrap_model(model.to(target).eval(), words, name or _name(name_or_path))


def outline_model(
    name_or_path: str,
    *,
    dtype: str = "auto",
    revision: str | None = None,
    tokenizer: bool = False,
    name: str = "",
) -> LoadedModel:
    """The modules and shapes of a model without its weights, which are neither fetched nor read.

    Raises:
        ModelError: if the model is not found, or is of a kind that cannot be loaded.
    """
    number_format = find_dtype(dtype)
    folder = find_checkpoint(name_or_path, revision, weights=False)
    config = read_config(folder, name_or_path)
    stated = {} if number_format == "auto" else {"dtype": number_format}
    with torch.device("meta"), transformers_at(f"build {name_or_path!r}"):
        model: Any = AutoModelForCausalLM.from_config(config, **stated, **OWN_CODE_ONLY)
    words = _read_tokenizer(folder, name_or_path) if tokenizer else None
    return wrap_model(model.eval(), words, name or _name(name_or_path))


def rehearsal_model(
    outline: LoadedModel, layers: int, *, vocabulary: int = 256, device: str = "auto"
) -> LoadedModel:
    """A model of the same shape with few layers and words, and random weights: to time it.

    Args:
        outline: a model, or its outline.
        layers: the first so many are there.
        vocabulary: entries of the embedding.
        device: where it computes.
    """
    config: Any = copy.deepcopy(outline.model.config)
    config.update({
        "num_hidden_layers": layers, "vocab_size": vocabulary,
        "pad_token_id": None, "bos_token_id": None, "eos_token_id": None,
    })  # fmt: skip
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:layers]
    with transformers_at(f"build a smaller {outline.name!r}"):
        model: Any = AutoModelForCausalLM.from_config(config, dtype=outline.dtype, **OWN_CODE_ONLY)
    return wrap_model(model.to(find_device(device)).eval(), None, outline.name)


def _name(name_or_path: str) -> str:
    """A name that tells nothing of where the folder is on this machine."""
    folder = Path(name_or_path).expanduser()
    return folder.resolve().name if folder.is_dir() else name_or_path


def _read_tokenizer(folder: Path, name: str) -> PreTrainedTokenizerBase | None:
    if not any((folder / file).exists() for file in TOKENIZER_FILES):
        return None
    with transformers_at(f"load the tokenizer of {name!r}"):
        words: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            folder, trust_remote_code=False, local_files_only=True
        )
    return words


def _require_whole(report: dict[str, Any], name: str) -> None:
    """Refuse weights that are missing (they would be random), left over, or of other shapes."""
    problems = [
        f"{len(keys)} {what}: {', '.join(sorted(map(_entry, keys))[:5])}"
        for what in ("missing", "unexpected", "mismatched")
        if (keys := report[f"{what}_keys"])
    ]
    if problems:
        raise ModelError(
            f"the weights of {name!r} are not those of its configuration ({'; '.join(problems)}); "
            "the checkpoint is damaged, or it is not a causal language model."
        )


def _entry(key: Any) -> str:
    return key if isinstance(key, str) else f"{key[0]} {list(key[1])}, not {list(key[2])}"
