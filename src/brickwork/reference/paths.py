"""Where the packaged reference model and its bricks are."""

from importlib.resources import files
from pathlib import Path

NAME = "reference"


def model_folder() -> Path:
    """The folder of the reference model, in Hugging Face's format."""
    return Path(str(files("brickwork.reference"))) / "model"


def bricks_folder() -> Path:
    """The folder that holds one folder for each built-in brick."""
    return Path(str(files("brickwork.reference"))) / "bricks"


def resolve_model(name: str) -> str:
    """The folder of the packaged model for ``reference``, any other name as it is."""
    return str(model_folder()) if name == NAME else name


def probe_file() -> Path:
    """The packaged probe set, gzipped JSONL."""
    return Path(str(files("brickwork.reference"))) / "probe.jsonl.gz"


def resolve_data(name: str) -> str:
    """The packaged probe set for ``reference``, any other name as it is."""
    return str(probe_file()) if name == NAME else name
