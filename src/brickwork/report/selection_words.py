"""What the pages on part of a model say in words, computed from their documents."""

from collections.abc import Iterator, Sequence

from brickwork.measure.selection_results import Carving, RouterQuality, RouterRow
from brickwork.report.carving import rises
from brickwork.report.numbers import count, mean, percent
from brickwork.report.router_lines import FREE, Line, levels_of, lines_of, nats, rise

_MOST_NAMED = 3
_HOW = {
    "token": "Chosen for each token from the FFN's input alone, without knowing the activations",
    "prompt": "Chosen once for a prompt, from what the prompt alone gives",
}


def router_opening(quality: RouterQuality) -> Iterator[str]:
    """Which router is best, how much can be left out, and what chance does there."""
    yield (
        f"This page shows what it costs to run {quality.model} with some of the neurons of each "
        "feed-forward network (FFN), which a router chooses, and what that saves. Losses are nats "
        f"per response token on {count(quality.instances, 'instance')} of {quality.data}; "
        f"functionalities: {', '.join(quality.base_losses)}."
    )
    for level, part in levels_of(quality).items():
        yield " ".join(_findings(part, level))


def router_limits(quality: RouterQuality) -> Iterator[str]:
    """What the numbers on routers cannot say."""
    yield (
        f"One model ({quality.model}), one set of data ({quality.data}), "
        f"{count(quality.instances, 'instance')} and one seed ({quality.seed}). The document holds "
        "no intervals, so small differences between routers may be luck."
    )
    yield (
        "Losses are of the masked model: all neurons are computed, and those that were not chosen "
        "are set to zero. They say nothing about time."
    )
    yield (
        "Loss on given responses is measured, not the quality of answers that the model writes. "
        "A mean over functionalities can hide one that suffers; the first figure shows each."
    )
    yield (
        "Where a router has several partitions, the best is picked on the instances that it is "
        "shown on, so it looks a little better than it is on others."
    )
    yield (
        "Multiply-adds are those of the FFN and its router. Attention and the rest of the model "
        "cost as before, and reading weights from memory is not counted."
    )
    yield (
        "Speeds are of one FFN, on the machine that wrote the document; other machines differ."
        if quality.speeds
        else "Speed was not measured."
    )


def carving_opening(carvings: Sequence[Carving]) -> Iterator[str]:
    """How each target fares beside random units, and what suffers most."""
    models = ", ".join(dict.fromkeys(each.model for each in carvings))
    yield (
        f"This page shows {count(len(carvings), 'smaller model')} made from {models}, of which "
        "only those units were kept that a target needs. Losses are nats per response token on "
        "held-out instances. Chance is a model of the same size that keeps random units."
    )
    for number, each in enumerate(carvings, 1):
        start = f"{number}. " if len(carvings) > 1 else ""
        yield start + " ".join(_fate(each))


def carving_limits(carvings: Sequence[Carving]) -> Iterator[str]:
    """What the numbers on smaller models cannot say."""
    data = ", ".join(dict.fromkeys(each.data for each in carvings))
    models = list(dict.fromkeys(each.model for each in carvings))
    numbers = sorted({each.instances for each in carvings})
    measured = f"{' or '.join(f'{number:,}' for number in numbers)} held-out instances"
    yield (
        f"{count(len(models), 'model')} ({', '.join(models)}) and {measured} of {data}. The "
        "documents hold no intervals and no spread of the random draws, so small differences may "
        "be luck."
    )
    yield (
        "Loss on given responses is measured, not the quality of answers that the model writes, "
        "and only on the functionalities that are listed; what else was lost is not seen."
    )
    if any(each.healed for each in carvings):
        yield (
            "Models of random units were not healed, so what healing adds cannot be told from what "
            "it would have added to them."
        )
    yield (
        "Parameters and operations are counted. How much faster a smaller model is depends on the "
        "machine, and was not measured here."
    )


def _findings(quality: RouterQuality, level: str) -> Iterator[str]:
    lines = lines_of(quality)
    best = best_rows(quality, [line for line in lines if line.usable])
    if not best:
        yield f"{_HOW[level]}: no such router was measured below a density of 100 %."
        return
    where: dict[str, list[float]] = {}
    for density, row in best.items():
        where.setdefault(router_name(row), []).append(density)
    winners = [f"{name} at {_densities(found)}" for name, found in where.items()]
    yield f"{_HOW[level]}, least loss is added by {', by '.join(winners)}."
    free = lowest_free(quality, best)
    density = max(best) if free is None else free
    row = best[density]
    added = {name: row.losses[name] - dense for name, dense in quality.base_losses.items()}
    worst = max(added, key=added.__getitem__)
    yield (
        f"At none of the densities below 100 % is the increase of the mean loss under {FREE} nats; "
        f"at {percent(density)} it is {nats(rise(quality, row))}"
        if free is None
        else f"The mean loss rises by less than {FREE} nats down to a density of {percent(density)}"
        f", where {router_name(row)} adds {nats(rise(quality, row))}"
    ) + f" (most: {worst}, {nats(added[worst])}) at {percent(row.cost)} of the multiply-adds."
    yield from _beside(quality, lines, row)


def _beside(quality: RouterQuality, lines: Sequence[Line], row: RouterRow) -> Iterator[str]:
    """What chance, a fixed choice and full knowledge give at the row's density."""
    told, beaten = [], []
    for router, words in (
        ("random", "a random choice adds"),
        ("fixed", "always the same neurons add"),
        ("hash", "groups by the token's id alone add"),
        ("truth", "groups chosen by what they really do add"),
        ("magnitude", "single neurons of the largest output add"),
    ):
        found = best_rows(quality, [line for line in lines if line.router == router])
        if row.density in found and found[row.density] is not row:
            other = rise(quality, found[row.density])
            told.append(f"{words} {nats(other)}")
            if router in ("random", "fixed", "hash") and other <= rise(quality, row):
                beaten.append(router)
    if told:
        yield f"There, {', '.join(told)}."
    if "random" not in (line.router for line in lines):
        yield "A random choice was not measured."
    if beaten:
        yield (
            f"The control ({' and '.join(beaten)}) costs no more, so at this density nothing is "
            "gained by the router."
        )


def best_rows(quality: RouterQuality, lines: Sequence[Line]) -> dict[float, RouterRow]:
    """For each density below 1, the smallest first, the row of these lines that costs least."""
    rows = [row for line in lines for row in line.rows if row.density < 1]
    return {
        density: min(
            (row for row in rows if row.density == density), key=lambda row: rise(quality, row)
        )
        for density in sorted({row.density for row in rows})
    }


def lowest_free(quality: RouterQuality, best: dict[float, RouterRow]) -> float | None:
    """The lowest density at which, as at all higher ones, the mean loss rises by under ``FREE``."""
    found = None
    for density in sorted(best, reverse=True):
        if rise(quality, best[density]) >= FREE:
            break
        found = density
    return found


def router_name(row: RouterRow) -> str:
    """A router with its partition."""
    return (
        f"{row.router} with {row.partition} ({row.groups} groups)" if row.partition else row.router
    )


def _densities(values: Sequence[float]) -> str:
    *others, last = map(percent, values)
    return f"{', '.join(others)} and {last}" if others else last


def _fate(each: Carving) -> Iterator[str]:
    after, random = rises(each), rises(each, "random")
    widths = "all layers alike" if each.widths == "uniform" else "each layer its own share"
    yield (
        f"Made for {each.target}: {percent(each.density)} of the {each.units}, chosen by {each.by}"
        f"{'' if each.units == 'layers' else f', {widths}'}."
    )
    if each.target in after:
        target = each.target
        yield (
            f"The loss on {target} goes from {each.before[target]:.2f} to "
            f"{each.after[target]:.2f} nats ({nats(after[target])}); with random units it changes "
            f"by {nats(random[target])}. {_gain(random[target] - after[target])}"
        )
    else:
        yield (
            f"Losses were not measured on {each.target} itself; over the functionalities the mean "
            f"loss changes by {nats(mean(list(after.values())))}, with random units by "
            f"{nats(mean(list(random.values())))}."
        )
    if each.healed is not None:
        healed = rises(each, "healed")
        what = [each.target] if each.target in healed else list(healed)
        name = each.target if each.target in healed else "the mean"
        yield f"After healing, {name} is at {nats(mean([healed[one] for one in what]))}."
    worst = sorted((name for name in after if after[name] > 0), key=lambda name: -after[name])
    named = ", ".join(f"{name} ({nats(after[name])})" for name in worst[:_MOST_NAMED])
    yield f"Most is lost on: {named}." if named else "No functionality's loss rises."


def _gain(saved: float) -> str:
    if saved > 0:
        return f"The choice saves {saved:.2f} nats beside chance."
    return "The choice is no better than chance for its target."
