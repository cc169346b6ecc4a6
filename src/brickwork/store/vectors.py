"""Embeddings of what bricks say of themselves, kept so that no text is embedded twice."""

import sqlite3

import numpy as np
from jaxtyping import Float, Float32

from brickwork.errors import StoreError

Matrix = Float32[np.ndarray, "texts dim"]
_STORED = np.dtype("<f4")


def put(
    db: sqlite3.Connection, embedder: str, content: str, matrix: Matrix, texts_hash: str
) -> None:
    """Keep one brick's matrix for one embedder; the one it had is replaced."""
    db.execute(
        "INSERT OR REPLACE INTO vectors (hash, embedder, texts_hash, dim, matrix) "
        "VALUES (?, ?, ?, ?, ?)",
        (content, embedder, texts_hash, matrix.shape[1], matrix.astype(_STORED).tobytes()),
    )


def load(db: sqlite3.Connection, embedder: str) -> dict[str, Matrix]:
    """The matrices of all listed bricks by content hash."""
    rows = db.execute(
        "SELECT hash, dim, matrix FROM vectors JOIN entries USING (hash) "
        "WHERE embedder = ? AND deleted IS NULL ORDER BY hash",
        (embedder,),
    )
    return {row["hash"]: _matrix(row["matrix"], row["dim"]) for row in rows}


def texts_hashes(db: sqlite3.Connection, embedder: str) -> dict[str, str]:
    """What texts each kept matrix was made of, by content hash."""
    rows = db.execute("SELECT hash, texts_hash FROM vectors WHERE embedder = ?", (embedder,))
    return {row["hash"]: row["texts_hash"] for row in rows}


def checked(matrix: Float[np.ndarray, "texts dim"]) -> Matrix:
    """The matrix as float32, or a refusal of what no embedder should give."""
    if matrix.ndim != 2 or matrix.shape[1] < 1 or not np.issubdtype(matrix.dtype, np.floating):
        raise StoreError(
            f"vectors are kept as a float matrix with one row per text, this has shape "
            f"{list(matrix.shape)} and dtype {matrix.dtype}; stack the texts' embeddings."
        )
    if not np.isfinite(matrix).all():
        raise StoreError("the vectors hold NaN or infinite values; check the embedder.")
    return matrix.astype(np.float32)


def problems(db: sqlite3.Connection) -> list[str]:
    """Matrices whose bytes do not make whole rows."""
    rows = db.execute(
        "SELECT hash, embedder FROM vectors WHERE dim < 1 OR length(matrix) % (4 * dim)"
    )
    return [f"the vectors of {row['hash'][:12]} for {row['embedder']} are damaged" for row in rows]


def _matrix(stored: bytes, dim: int) -> Matrix:
    return np.frombuffer(stored, dtype=_STORED).reshape(-1, dim).astype(np.float32)
