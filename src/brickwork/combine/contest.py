"""A search with what it is to be compared with: parents alone, single methods, held-out data."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from brickwork.brick.brick import canonical_json
from brickwork.combine.candidates import BrickTrials, ModelTrials, Pair, Split, require_objectives
from brickwork.combine.search import Searching, run_search
from brickwork.combine.search_recipe import SearchRecipe, SearchSpec
from brickwork.combine.search_results import SearchResult, TrialRow
from brickwork.combine.search_space import Candidate, Space, single_methods, space_of
from brickwork.errors import BrickworkError
from brickwork.measure.instances import content_hash

Advance = Callable[[float], None]


@dataclass(frozen=True)
class Contest:
    """What is searched, on what, and by whom."""

    recipe: SearchRecipe
    trials: BrickTrials | ModelTrials
    split: Split
    data: str
    seed: int = 0
    worker: int = 0

    @property
    def spec(self) -> SearchSpec:
        """The recipe's part on the search."""
        assert self.recipe.search is not None
        return self.recipe.search

    @property
    def key(self) -> str:
        """What makes this search the same as another."""
        parts = [
            self.recipe.model_dump(mode="json"),
            self.trials.loaded.base.fingerprint.weights,
            self.trials.hashes,
            *(content_hash(i for i, _ in s) for s in (self.split.search, self.split.held_out)),
            self.seed,
        ]
        return hashlib.sha256(canonical_json(parts).encode()).hexdigest()


def hold_contest(
    contest: Contest, folder: Path, *, advance: Advance = lambda _steps: None
) -> SearchResult:
    """Search, then measure what the page compares.

    Args:
        contest: what is searched.
        folder: keeps the trials, so that a second call goes on.
        advance: told after each trial.

    Raises:
        BrickworkError: as ``space_of``, ``require_objectives`` and ``run_search`` say.
    """
    spec, trials, split = contest.spec, contest.trials, contest.split
    sized = isinstance(trials, BrickTrials) and len(spec.ranks) > 1
    for side in (split.search, split.held_out):
        require_objectives(spec.objectives, side, sized=sized)
    operands = contest.recipe.bricks or contest.recipe.models
    space = space_of(spec, len(operands), has_base=True)
    rows = run_search(
        Searching(space, contest.key, contest.seed, contest.worker),
        lambda candidate, seed: trials.evaluate(candidate, seed, split.search),
        folder,
        advance=advance,
    )
    shown = [_with_held_out(contest, row) if row.front else row for row in rows]
    return SearchResult(
        brickwork=version("brickwork"),
        base=contest.recipe.base,
        fingerprint=trials.loaded.base.fingerprint.weights,
        operands=operands,
        data=contest.data,
        instances=len(split.search),
        held_out=len(split.held_out),
        objectives=spec.objectives,
        sampler=spec.sampler,
        seed=contest.seed,
        recipe=contest.recipe.model_dump(mode="json"),
        rows=(*shown, *_parents(contest, operands), *_methods(contest, space)),
    )


def _with_held_out(contest: Contest, row: TrialRow) -> TrialRow:
    candidate = Candidate(row.method, row.parameters, row.rank)
    values = contest.trials.evaluate(candidate, row.seed, contest.split.held_out)
    return row.model_copy(update={"held_out": _chosen(contest, values)})


def _parents(contest: Contest, operands: tuple[str, ...]) -> list[TrialRow]:
    def values(place: int | None, pairs: list[Pair] | tuple[Pair, ...]) -> dict[str, float]:
        return _chosen(contest, contest.trials.alone(place, pairs))

    rows = []
    for place, name in ((None, "the base"), *enumerate(operands)):
        rows.append(
            TrialRow(
                number=-1, kind="parent", label=name, method="", parameters=(), rank=None,
                seed=0, values=values(place, tuple(contest.split.search)),
                held_out=values(place, tuple(contest.split.held_out)),
            )
        )  # fmt: skip
    return rows


def _methods(contest: Contest, space: Space) -> list[TrialRow]:
    rows = []
    for label, candidate in single_methods(space):
        reason, sides = "", []
        try:
            for pairs in (contest.split.search, contest.split.held_out):
                found = contest.trials.evaluate(candidate, contest.seed, pairs)
                sides.append(_chosen(contest, found))
        except BrickworkError as error:
            reason = str(error)
        rows.append(
            TrialRow(
                number=-1, kind="method", label=label, method=candidate.method,
                parameters=candidate.written, rank=None,
                seed=contest.seed, values=None if reason else sides[0],
                held_out=None if reason else sides[1], reason=reason,
            )
        )  # fmt: skip
    return rows


def _chosen(contest: Contest, values: dict[str, float]) -> dict[str, float]:
    return {name: values[name] for name in contest.spec.objectives}
