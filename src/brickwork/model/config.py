"""The configuration of a checkpoint, read without running or fetching what it may ask for."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig
from transformers.utils import logging

from brickwork.errors import ModelError
from brickwork.model.checkpoint import CONFIG


def read_config(folder: Path, name: str) -> PreTrainedConfig:
    """The configuration of the model in a folder; ``name`` is for the errors.

    Raises:
        ModelError: if it is damaged, of an unknown family, or asks for other than plain weights.
    """
    model_type = _read_model_type(folder, name)
    if model_type not in CONFIG_MAPPING:
        raise ModelError(
            f"the model {name!r} is of the type {model_type!r}, which this version of "
            "transformers does not know, and code that comes with a model is never run; "
            "update transformers, or name another model."
        )
    with transformers_at(f"read the configuration of {name!r}"):
        config: PreTrainedConfig = AutoConfig.from_pretrained(
            folder, trust_remote_code=False, local_files_only=True
        )
    for key in ("quantization_config", "transformers_weights"):
        if getattr(config, key, None):
            raise ModelError(
                f"the configuration of {name!r} has {key!r}; only plain safetensors weights are "
                "supported, so name a checkpoint that is not quantized or repacked."
            )
    return config


def _read_model_type(folder: Path, name: str) -> str:
    """The family that the configuration names; empty if it names none."""
    try:
        return str(json.loads((folder / CONFIG).read_text("utf-8")).get("model_type", ""))
    except (ValueError, AttributeError, OSError, RecursionError) as error:
        raise ModelError(f"{CONFIG} of the model {name!r} is damaged: {error}") from None


@contextmanager
def transformers_at(work: str) -> Iterator[None]:
    """Turn whatever transformers says about a bad checkpoint into one error, and keep it quiet.

    It raises anything from OSError to ZeroDivisionError, depending on what is damaged.
    """
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    if not sys.stderr.isatty():
        logging.disable_progress_bar()
    try:
        yield
    except Exception as error:
        raise ModelError(f"could not {work}: {type(error).__name__}: {error}") from error
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
