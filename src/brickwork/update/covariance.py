"""Covariances of keys: opened from a folder of statistics, or measured once and kept."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from brickwork.brick.brick import canonical_json
from brickwork.errors import EditError, MergeError
from brickwork.measure.merge_statistics import (
    Measurement,
    Statistics,
    StatisticsSpec,
    collect_statistics,
    open_statistics,
)
from brickwork.model.load import LoadedModel
from brickwork.model.saved import as_saved
from brickwork.model.train import Encoded
from brickwork.update.edit import StatisticsUsed
from brickwork.update.keys import edit_path
from brickwork.update.method import Covariance

Covariances = Callable[[int], Covariance]


@dataclass(frozen=True)
class Corpus:
    """What a covariance is measured on.

    Attributes:
        sequences: texts as tokens.
        name: of the data.
        sha256: what identifies it.
        tokens: after how many it is enough; None: all.
        seed: decides which texts are drawn.
    """

    sequences: Sequence[Encoded]
    name: str
    sha256: str
    tokens: int | None = None
    seed: int = 0


def open_covariance(folder: Path, loaded: LoadedModel) -> tuple[Covariances, StatisticsUsed]:
    """The covariances in a folder that ``brickwork statistics`` wrote, one layer at a time.

    What is returned reads a layer's matrix when it is asked for, and raises ``EditError`` where
    the folder has none of that layer.

    Raises:
        EditError: if the folder holds no statistics of keys, or they are of another base.
    """
    statistics = _opened(folder)
    found, own = statistics.spec.base, loaded.base.fingerprint
    if found.weights != own.weights:
        raise EditError(
            f"the statistics in {str(folder)!r} are of the base {found.name!r} (weights "
            f"{found.weights[:12]}), and the edit is of {own.name!r} ({own.weights[:12]}); measure "
            f"them on it: brickwork statistics {own.name or 'MODEL'} --kind gram --data DATA -o OUT"
        )

    def covariance(layer: int) -> Covariance:
        return _layer_covariance(statistics, loaded, layer)

    return covariance, used(statistics.spec)


def measure_covariance(
    loaded: LoadedModel,
    corpus: Corpus,
    layers: Sequence[int],
    home: Path,
    *,
    advance: Callable[[float], None] = lambda _instances: None,
) -> tuple[Covariances, StatisticsUsed]:
    """The covariances of some layers over a corpus, measured unless they have been before.

    What is kept lies in ``home/KEY/LAYERS``: a hash of the base and the corpus, then the numbers
    of the layers that were measured together. Those that are missing are measured in one go.

    Args:
        loaded: the model as it came, without edits.
        corpus: what to measure on.
        layers: which.
        home: a folder to keep them in; it is made if need be.
        advance: told the number of texts that have just been read.

    Raises:
        EditError: if a layer is one of experts, or there is no such, or what is kept is damaged.
        DataError: if the corpus is empty, or the disk too small.
    """
    place = home / _key(loaded, corpus)
    sites = {layer: _address(loaded, layer) for layer in sorted(set(layers))}
    kept = _kept(place)
    missing = [layer for layer in sites if layer not in kept]
    if missing:
        measurement = Measurement(
            "gram",
            tokens=corpus.tokens,
            seed=corpus.seed,
            data=corpus.name,
            data_sha256=corpus.sha256,
            sites=tuple(sites[layer] for layer in missing),
        )
        folder = place / "+".join(map(str, missing))
        collect_statistics(loaded, corpus.sequences, measurement, folder, advance=advance)
        kept = _kept(place)
    opened = {folder: _opened(folder) for folder in sorted({kept[layer] for layer in sites})}

    def covariance(layer: int) -> Covariance:
        if layer not in sites:
            raise _missing(loaded, layer, f"what was measured, {', '.join(sites.values())},")
        return _layer_covariance(opened[kept[layer]], loaded, layer)

    hashes = [statistics.spec.sha256 for statistics in opened.values()]
    both = hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()
    spec = next(iter(opened.values())).spec
    return covariance, used(spec).model_copy(update={"sha256": both})


def _kept(place: Path) -> dict[int, Path]:
    """For each layer that has been measured, the folder that has it."""
    folders = sorted(place.glob("*")) if place.is_dir() else []
    return {
        int(number): folder
        for folder in folders
        for number in folder.name.split("+")
        if number.isdecimal()
    }


def used(spec: StatisticsSpec) -> StatisticsUsed:
    """What an edit keeps of the statistics that it was made with."""
    return StatisticsUsed(data=spec.data, tokens=spec.tokens, sha256=spec.sha256)


def _opened(folder: Path) -> Statistics:
    try:
        return open_statistics(folder, "gram")
    except MergeError as error:
        raise EditError(f"the covariance of an edit cannot be read: {error}") from None


def _layer_covariance(statistics: Statistics, loaded: LoadedModel, layer: int) -> Covariance:
    weight = f"{edit_path(loaded.model, layer)}.weight"
    outline = loaded.model.get_parameter(weight).detach().to("meta")
    (name,) = as_saved(loaded.model, {weight: outline})
    matrix = statistics.tensor(name)
    if matrix is None:
        raise _missing(loaded, layer, f"the folder {str(statistics.folder)!r}")
    return Covariance(matrix, statistics.spec.tokens)


def _missing(loaded: LoadedModel, layer: int, where: str) -> EditError:
    return EditError(
        f"the covariance of layer {layer} was asked for, and {where} has none of it; measure it: "
        f"brickwork statistics {loaded.name or 'MODEL'} --kind gram --data DATA -o OUT --site "
        f"{_address(loaded, layer)}"
    )


def _address(loaded: LoadedModel, layer: int) -> str:
    return loaded.base.sites[edit_path(loaded.model, layer)].address


def _key(loaded: LoadedModel, corpus: Corpus) -> str:
    """A name that is the same exactly if the matrices would be."""
    about = {
        "weights": loaded.base.fingerprint.weights,
        "tokenizer": loaded.base.fingerprint.tokenizer,
        "dtype": str(loaded.dtype),
        "data": corpus.sha256,
        "tokens": corpus.tokens,
        "seed": corpus.seed,
    }
    return hashlib.sha256(canonical_json(about).encode()).hexdigest()[:32]
