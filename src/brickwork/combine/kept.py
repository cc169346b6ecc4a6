"""What every merge method would leave of each update, found before anything is merged."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from brickwork.combine.coefficients import coefficients, is_weighted_sum, merge_updates
from brickwork.combine.method import Method
from brickwork.combine.methods import methods
from brickwork.errors import MergeError
from brickwork.measure.interference import SiteNumbers, compare_at, pair_of
from brickwork.measure.interference_results import Kept, Pair, Thresholds
from brickwork.measure.updates import SiteUpdates, site_seed

# Values of an update that signs are counted over, and that methods are tried on, in all sites
# together: enough for shares that are right to a thousandth, and a second or two of work.
COUNTED, TRIED = 1 << 24, 1 << 22
_LEAST_ROWS = 4

# What a user would write where a method asks for something.
_USUAL: Mapping[str, float] = {"weight": 1.0, "t": 0.5, "density": 0.5, "select_topk": 0.5}
_DISTANCE = "its t is a distance between values, so no setting suits every model"


@dataclass(frozen=True)
class Findings:
    """What a comparison of several updates found.

    Attributes:
        pairs: every two.
        kept: what each method would leave.
        left_out: methods that were not tried, with the reason.
        every_row: whether shares over values were taken over all of them.
        sites: how many sites each changes.
    """

    pairs: list[Pair]
    kept: list[Kept]
    left_out: dict[str, str]
    every_row: bool
    sites: dict[str, int]


@dataclass
class _Trial:
    """One method, and its sums over the sites seen so far."""

    row: Method
    parameters: dict[str, Any]
    inner: Tensor
    squares: Tensor
    length: float = 0.0


@dataclass
class _Sums:
    sites: dict[tuple[int, int], list[SiteNumbers]] = field(default_factory=dict)
    every_row: bool = True


def tried_methods(count: int) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """The methods that so many updates are tried with, their settings, and why others are not."""
    tried, left_out = {}, {}
    for name, row in methods().items():
        most = row.most if row.base != "required" or row.most is None else row.most + 1
        if row.statistics:
            left_out[name] = f"it needs {row.statistics} statistics of the models"
        elif name == "nearswap":
            left_out[name] = _DISTANCE
        elif most is not None and count > most:
            left_out[name] = f"it merges {most}, and these are {count}"
        else:
            tried[name] = {
                p.name: _USUAL.get(p.name, p.default)
                for p in row.parameters
                if p.default is None or (p.name in _USUAL and not is_weighted_sum(name, {}))
            }
    return tried, left_out


def examine(
    names: Sequence[str],
    sites: Iterable[SiteUpdates],
    *,
    values: int,
    rank: int | None = None,
    thresholds: Thresholds | None = None,
    seed: int = 0,
) -> Findings:
    """Compare updates with each other, and try every method on them.

    Args:
        names: of the updates, no two equal.
        sites: every site that one of them changes; each is looked at once, then let go.
        values: of one update in all sites together; if they are many, only some rows are read.
        rank: principal directions compared, at most.
        thresholds: of the verdicts.
        seed: of the rows that are read and of random methods.
    """
    tried, left_out = tried_methods(len(names))
    rows, zeros = methods(), torch.zeros(len(names), dtype=torch.float64)
    trials = [_Trial(rows[m], p, zeros.clone(), zeros.clone()) for m, p in tried.items()]
    sums, changed = _Sums(), torch.zeros(len(names), len(names), dtype=torch.int64)
    touched = torch.zeros(len(names), dtype=torch.int64)
    for updates in sites:
        own = updates.lengths > 0
        touched += own
        changed += own[:, None] & ~own[None, :]
        counted = _some_rows(updates, COUNTED / max(values, 1), seed)
        for pair, numbers in compare_at(updates, counted, rank=rank).items():
            sums.sites.setdefault(pair, []).append(numbers)
        read = _some_rows(updates, TRIED / max(values, 1), seed)
        sums.every_row &= counted is None and read is None
        failed = _try_methods(trials, updates, read, names=names, seed=seed)
        left_out |= failed
        trials = [trial for trial in trials if trial.row.name not in failed]
    pairs = [
        pair_of(
            (names[a], names[b]), sums.sites.get((a, b), []),
            (int(changed[a, b]), int(changed[b, a])), thresholds or Thresholds(),
        )
        for a in range(len(names)) for b in range(a + 1, len(names))
    ]  # fmt: skip
    return Findings(
        pairs, [_kept(t, names) for t in trials], left_out, sums.every_row,
        dict(zip(names, touched.tolist(), strict=True)),
    )  # fmt: skip


def _some_rows(updates: SiteUpdates, share: float, seed: int) -> Tensor | None:
    """Rows drawn without putting back; None if all are few enough."""
    rows = updates.shape[0]
    wanted = max(_LEAST_ROWS, round(rows * share))
    if wanted >= rows:
        return None
    chance = torch.Generator().manual_seed(site_seed(seed, updates.site))
    return torch.randperm(rows, generator=chance)[:wanted].sort().values


def _try_methods(
    trials: Sequence[_Trial],
    updates: SiteUpdates,
    read: Tensor | None,
    *,
    names: Sequence[str],
    seed: int,
) -> dict[str, str]:
    """Add to the sums of each method; of those that refuse these updates, the reason."""
    failed: dict[str, str] = {}
    every = torch.arange(updates.shape[0]) if read is None else read
    values = [rows.float() for rows in updates.read(every)]
    for trial in trials:
        name, parameters = trial.row.name, trial.parameters
        try:
            if is_weighted_sum(name, parameters):
                factors = coefficients(name, updates.gram, keys=names, parameters=parameters)
                trial.inner += updates.gram @ factors
                trial.squares += updates.gram.diagonal()
                trial.length += (factors @ updates.gram @ factors).item()
                continue
            merged = merge_updates(
                name, values, keys=names, seed=site_seed(seed, updates.site), parameters=parameters
            )
        except MergeError as error:
            if not all(own.isfinite().all() for own in values):
                raise MergeError(f"{name} at {updates.site!r}: {error}") from None
            failed[name] = f"at {updates.site!r} it refuses: {error}"
            continue
        trial.inner += torch.tensor([(merged * own).sum(dtype=torch.float64) for own in values])
        trial.squares += torch.tensor([own.square().sum(dtype=torch.float64) for own in values])
        trial.length += merged.square().sum(dtype=torch.float64).item()
    return failed


def _kept(trial: _Trial, names: Sequence[str]) -> Kept:
    squares = trial.squares.clamp(min=1e-300)
    shares = trial.inner / squares
    # Roots before the product, which would be 0 where an update does nothing.
    cosines = trial.inner / (squares.sqrt() * max(trial.length, 1e-300) ** 0.5)
    return Kept(
        method=trial.row.name,
        parameters=trial.parameters,
        kept=dict(zip(names, shares.tolist(), strict=True)),
        cosine=dict(zip(names, cosines.clamp(-1, 1).tolist(), strict=True)),
    )
