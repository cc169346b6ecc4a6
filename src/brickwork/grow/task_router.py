"""A small trained router: which task's brick an instruction needs, or none.

Every task has a classifier of its own against the background and the tasks before it. A later task
adds another one and leaves the others, to the bit.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32
from pydantic import BaseModel, ConfigDict, ValidationError
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_curve

from brickwork.brick.files import json_bytes, read_json, read_tensors, tensor_bytes, write_folder
from brickwork.brick.spec import explain
from brickwork.errors import DataError, GrowthError
from brickwork.grow.router_features import Features, Rows, WordFeatures

ROUTER_FILE, TENSORS_FILE, FORMAT = "router.json", "router.safetensors", 1
# Every so manieth instruction is not learned from: the threshold comes from these.
_HELD_OUT = 4
_FEWEST = 2 * _HELD_OUT
# Share of the held-out background that may pass a task's threshold.
_LET_THROUGH = 0.01


@dataclass(frozen=True, eq=False)
class TaskRouter:
    """Linear classifiers over features, one for each task.

    Attributes:
        features: what is read of an instruction.
        names: of the tasks.
        weights: of each feature for each task.
        biases: of each task.
        thresholds: the log-odds that an instruction has to exceed for a task.
    """

    features: Features
    names: tuple[str, ...]
    weights: Float32[np.ndarray, "tasks features"]
    biases: Float32[np.ndarray, " tasks"]
    thresholds: Float32[np.ndarray, " tasks"]

    def scores(self, prompts: Sequence[str]) -> Float32[np.ndarray, "texts tasks"]:
        """The log-odds that an instruction is of each task."""
        rows = self.features(prompts)
        # One task at a time: a product with all of them could round otherwise for another number.
        found = [rows @ own + bias for own, bias in zip(self.weights, self.biases, strict=True)]
        return np.stack(found, axis=1) if found else np.zeros((len(rows), 0), np.float32)

    def __call__(self, prompts: Sequence[str]) -> list[str | None]:
        """Of the tasks above their thresholds the likeliest, or None: the base alone answers."""
        if not (prompts and self.names):
            return [None for _ in prompts]
        scores = self.scores(prompts)
        above = np.where(scores > self.thresholds, scores, -np.inf)
        return [self.names[row.argmax()] if row.max() > -np.inf else None for row in above]


def empty_router(features: Features) -> TaskRouter:
    """A router that knows no task yet, and always abstains."""
    none = np.zeros(0, np.float32)
    return TaskRouter(features, (), np.zeros((0, 0), np.float32), none, none)


def extend_router(
    router: TaskRouter,
    name: str,
    prompts: Sequence[str],
    *,
    background: Sequence[str],
    others: Sequence[str] = (),
    strength: float = 100.0,
) -> TaskRouter:
    """The router with one more task; the scores of the others stay as they are.

    Three quarters of the instructions are learned from. On the rest the threshold is set: where
    it tells the task's from all others best, or higher, so that at most one in a hundred of the
    background passes.

    Args:
        router: over the tasks so far.
        name: of the task.
        prompts: its instructions, at least 8; equal ones count once.
        background: instructions that no brick serves, at least 8.
        others: instructions of other tasks.
        strength: of the training data against the weights' size, scikit-learn's ``C``.

    Raises:
        GrowthError: if the router has such a task.
        DataError: if there are too few instructions.

    Source:
        One-vs-rest logistic regression, as scikit-learn fits it; the threshold is where Youden's J
        (Youden 1950, Index for rating diagnostic tests) is largest, in the middle of the gap.
    """
    if name in router.names:
        raise GrowthError(
            f"the task {name!r} was to be added to a router that has it already (its tasks: "
            f"{', '.join(router.names)}); give it another name."
        )
    own, strange = list(dict.fromkeys(prompts)), list(dict.fromkeys(background))
    other = [text for text in dict.fromkeys(others) if text not in set(own)]
    if min(len(own), len(strange)) < _FEWEST:
        raise DataError(
            f"a router was to learn {name!r} from {len(own)} different instructions against "
            f"{len(strange)} of the background; give at least {_FEWEST} of each."
        )
    rows = [router.features(texts) for texts in (own, strange, other)]
    taught, held = zip(*map(_parted, rows), strict=True)
    model = _fitted(taught, strength)
    weights, bias = model.coef_[0].astype(np.float32), np.float32(model.intercept_[0])
    threshold = _threshold(*(part @ weights + bias for part in held))
    return replace(
        router,
        names=(*router.names, name),
        weights=np.concatenate([router.weights.reshape(-1, len(weights)), weights[None]]),
        biases=np.append(router.biases, bias),
        thresholds=np.append(router.thresholds, threshold),
    )


def _parted(rows: Rows) -> tuple[Rows, Rows]:
    """What is learned from, and what the threshold is set on."""
    held = np.arange(len(rows)) % _HELD_OUT == _HELD_OUT - 1
    return rows[~held], rows[held]


def _fitted(taught: Sequence[Rows], strength: float) -> Any:
    labels = np.concatenate([np.full(len(part), place == 0) for place, part in enumerate(taught)])
    # Balanced: tasks with few instructions would otherwise be thought unlikely.
    model = LogisticRegression(C=strength, class_weight="balanced", max_iter=1000, random_state=0)
    return model.fit(np.concatenate(taught), labels)


def _threshold(
    own: Float[np.ndarray, " on"], strange: Float[np.ndarray, " off"], other: np.ndarray
) -> np.float32:
    """Where the held-out instructions of a task are told from all others best."""
    off = np.concatenate([strange, other])
    scores = np.concatenate([own, off])
    fell, rose, cuts = roc_curve(np.arange(len(scores)) < len(own), scores)
    kept = cuts[1:][(rose - fell)[1:].argmax()]  # the first cut is above all scores
    below = scores[scores < kept].max(initial=-np.inf)
    middle = (kept + below) / 2 if np.isfinite(below) else kept - 1
    return np.float32(max(middle, np.quantile(strange, 1 - _LET_THROUGH)))


class _Document(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    format: int
    features: str
    names: tuple[str, ...]


def write_router(router: TaskRouter, folder: Path) -> None:
    """Write the router as a folder, in place of one that stood there."""
    document = _Document(format=FORMAT, features=router.features.id, names=router.names)
    arrays = {name: getattr(router, name) for name in ("weights", "biases", "thresholds")}
    if isinstance(router.features, WordFeatures):
        arrays["rarity"] = router.features.rarity
    files = {
        ROUTER_FILE: json_bytes(ROUTER_FILE, document.model_dump(mode="json")),
        TENSORS_FILE: tensor_bytes({name: torch.tensor(rows) for name, rows in arrays.items()}),
    }
    write_folder(files, folder)


def read_router(folder: Path, features: Features | None = None) -> TaskRouter:
    """The router of a folder that ``write_router`` wrote.

    Args:
        folder: with its two files.
        features: those that it was trained on; None: words, which it keeps itself.

    Raises:
        BrickFormatError: if a file is missing or damaged.
        DataError: if the files do not go together, or with the features.
    """
    try:
        document = _Document.model_validate(read_json(folder, ROUTER_FILE))
    except ValidationError as error:
        raise DataError(
            f"{folder / ROUTER_FILE} is no router: {explain(error)}; write it again."
        ) from None
    arrays = {name: rows.numpy() for name, rows in read_tensors(folder, TENSORS_FILE).items()}
    if features is None and "rarity" in arrays:
        features = WordFeatures(rarity=arrays["rarity"])
    if document.format != FORMAT or features is None or features.id != document.features:
        raise DataError(
            f"{folder} holds a router of format {document.format} over {document.features!r}; this "
            f"version reads format {FORMAT}, and was given {features.id if features else 'none'!r}."
        )
    names, width = document.names, len(features([]).T)
    shapes = {"weights": (len(names), width), "biases": (len(names),), "thresholds": (len(names),)}
    found = {name: arrays.get(name, np.zeros(0)) for name in shapes}
    wrong = [n for n in shapes if found[n].shape != shapes[n] or not np.isfinite(found[n]).all()]
    if wrong or len(set(names)) < len(names):
        raise DataError(
            f"{folder} should hold finite {', '.join(wrong) or 'numbers'} for {len(set(names))} "
            "tasks; write the router again."
        )
    return TaskRouter(features, names, *(found[name].astype(np.float32) for name in shapes))
