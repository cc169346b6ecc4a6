"""Search over ways to combine, by evolution, with several objectives; it can be interrupted.

Trials lie in a journal on disk. Whoever calls ``run_search`` with the same folder goes on with it,
also while another process is at it. Source: Akiba et al. 2024, Evolutionary Optimization of Model
Merging Recipes (arXiv:2403.13187).
"""

import hashlib
import math
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from brickwork.combine.search_recipe import SearchSpec
from brickwork.combine.search_results import TrialRow
from brickwork.combine.search_space import Axis, Candidate, Space
from brickwork.errors import BrickworkError, ConfigurationError, MissingExtraError

if TYPE_CHECKING:
    import optuna

JOURNAL = "trials.journal"
Advance = Callable[[float], None]
# The objectives of a candidate, each to be small; the number is the seed of its random choices.
Evaluate = Callable[[Candidate, int], Mapping[str, float]]
_STUDY, _KEY, _REASON, _SEED = "search", "key", "reason", "seed"


@dataclass(frozen=True)
class Searching:
    """What a search is.

    Attributes:
        space: what is chosen among.
        key: says what is searched on (base, operands, data, recipe); a journal of another search
            is never gone on with.
        seed: of every choice.
        worker: number of this process, if several search at once.
    """

    space: Space
    key: str
    seed: int = 0
    worker: int = 0


def run_search(
    searching: Searching,
    evaluate: Evaluate,
    folder: Path,
    *,
    advance: Advance = lambda _steps: None,
) -> list[TrialRow]:
    """Try candidates until there are as many trials as the recipe asks for.

    Args:
        searching: what to search.
        evaluate: a ``BrickworkError`` of it makes a failed trial, with its reason.
        folder: keeps the journal; made if it is missing.
        advance: told after each trial of this process.

    Returns:
        All trials, those of other processes and earlier calls too, by number.

    Raises:
        ConfigurationError: if the folder holds another search.
        MissingExtraError: if the extra ``search`` is not installed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with _quiet():
        study = _study(searching, folder)
        while len(_done(study)) < searching.space.spec.trials:
            _try(study, searching, evaluate)
            advance(1)
        return _rows(study, searching)


def pareto_front(values: Sequence[Sequence[float]]) -> list[bool]:
    """Which points no other is better than in one number and as good as in all others.

    >>> pareto_front([(1, 3), (2, 2), (3, 3), (1, 3)])
    [True, True, False, True]
    """
    return [
        not any(
            all(a <= b for a, b in zip(other, own, strict=True)) and tuple(other) != tuple(own)
            for other in values
        )
        for own in values
    ]


def _try(study: "optuna.Study", searching: Searching, evaluate: Evaluate) -> None:
    import optuna  # noqa: PLC0415

    space = searching.space
    trial = study.ask()
    seed = _number(searching.seed, trial.number)
    trial.set_user_attr(_SEED, seed)
    candidate = space.candidate({axis.name: _suggest(trial, axis) for axis in space.axes})
    try:
        values = evaluate(candidate, seed)
        wanted = [float(values[name]) for name in space.spec.objectives]
        if not all(map(math.isfinite, wanted)):
            raise ConfigurationError(f"an objective is not finite: {wanted}")
    except BrickworkError as error:
        trial.set_user_attr(_REASON, str(error))
        study.tell(trial, state=optuna.trial.TrialState.FAIL)
        return
    study.tell(trial, wanted)


def _suggest(trial: "optuna.Trial", axis: Axis) -> Any:
    if axis.choices:
        return trial.suggest_categorical(axis.name, axis.choices)
    return trial.suggest_float(axis.name, axis.low, axis.high)


def _study(searching: Searching, folder: Path) -> "optuna.Study":
    study = _open(folder / JOURNAL, len(searching.space.spec.objectives))
    found = study.user_attrs.get(_KEY)
    if found is None:
        study.set_user_attr(_KEY, searching.key)
    elif found != searching.key:
        raise ConfigurationError(
            f"{str(folder)!r} holds a search with another recipe, base, data set or seed; name "
            "another folder, or remove this one."
        )
    # A resumed search must not draw what it drew before, nor one worker what another draws.
    drawn = _number(searching.seed, len(study.get_trials(deepcopy=False)), searching.worker)
    study.sampler = _sampler(searching.space.spec, drawn % 2**32)
    return study


def _open(journal: Path, objectives: int) -> "optuna.Study":
    """The study in a journal, without a line that a process was killed in the middle of."""
    from optuna import create_study  # noqa: PLC0415
    from optuna.storages import JournalStorage  # noqa: PLC0415
    from optuna.storages.journal import (  # noqa: PLC0415
        JournalFileBackend,
        JournalFileSymlinkLock,
    )

    lock = JournalFileSymlinkLock(str(journal))
    lock.acquire()  # another process may be in the middle of a line now
    try:
        written = journal.read_bytes() if journal.exists() else b""
        if not written.endswith(b"\n") and written:
            os.truncate(journal, written.rfind(b"\n") + 1)
    finally:
        lock.release()
    try:
        return create_study(
            study_name=_STUDY, storage=JournalStorage(JournalFileBackend(str(journal), lock)),
            directions=["minimize"] * objectives, load_if_exists=True,
        )  # fmt: skip
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ConfigurationError(
            f"{str(journal)!r} should hold the trials of a search, but cannot be read "
            f"({type(error).__name__}: {error}); name another folder, or remove this one."
        ) from None


def _sampler(spec: SearchSpec, seed: int) -> "optuna.samplers.BaseSampler":
    from optuna import samplers  # noqa: PLC0415

    match spec.sampler:
        case "nsga2":
            return samplers.NSGAIISampler(population_size=spec.population, seed=seed)
        case "tpe":
            return samplers.TPESampler(
                seed=seed, n_startup_trials=spec.population, multivariate=True
            )
        case "random":
            return samplers.RandomSampler(seed=seed)


def _done(study: "optuna.Study") -> "list[optuna.trial.FrozenTrial]":
    # A trial that a killed process began stays unfinished, and is done anew under another number.
    return [trial for trial in study.get_trials(deepcopy=False) if trial.state.is_finished()]


def _rows(study: "optuna.Study", searching: Searching) -> list[TrialRow]:
    trials = sorted(_done(study), key=lambda trial: trial.number)
    good = [trial for trial in trials if trial.values is not None]
    front = pareto_front([trial.values for trial in good])
    best = {trial.number for trial, on in zip(good, front, strict=True) if on}
    rows = []
    for trial in trials:
        candidate = searching.space.candidate(trial.params)
        values = None
        if trial.values is not None:
            names = searching.space.spec.objectives
            values = dict(zip(names, map(float, trial.values), strict=True))
        rows.append(
            TrialRow(
                number=trial.number,
                kind="trial",
                label=f"trial {trial.number}",
                method=candidate.method,
                parameters=candidate.written,
                rank=candidate.rank,
                seed=int(trial.user_attrs.get(_SEED, 0)),
                values=values,
                reason=str(trial.user_attrs.get(_REASON, "")),
                front=trial.number in best,
            )
        )
    return rows


def _number(*parts: int) -> int:
    digest = hashlib.sha256(" ".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


@contextmanager
def _quiet() -> Iterator[None]:
    """Optuna without its log and its warnings about what it calls experimental."""
    try:
        import optuna  # noqa: PLC0415
    except ImportError:
        raise MissingExtraError("searching for recipes", "search") from None
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            yield
    finally:
        optuna.logging.set_verbosity(level)
