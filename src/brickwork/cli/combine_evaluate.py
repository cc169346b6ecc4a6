"""``--evaluate``: losses of base, parents and child, in the command that makes a merge."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from brickwork.cli.console import progress
from brickwork.cli.inputs import data_name, read_labelled
from brickwork.cli.options import OUT, Command, written_flags

if TYPE_CHECKING:
    from brickwork.brick.brick import Brick
    from brickwork.measure.instances import Instance
    from brickwork.measure.tradeoff import Role, Tradeoff
    from brickwork.model.load import LoadedModel
    from brickwork.model.train import Encoded

Losses = dict[str, float]
_COUNT = click.IntRange(min=1)
_MEASURING = ("mapping", "instances", "by", "longest", "report")


@dataclass(frozen=True)
class Contender:
    """A base, parent or child, and how to find its loss for each functionality."""

    name: str
    role: "Role"
    losses: Callable[[], Losses]


def evaluation_options(command: Command) -> Command:
    """Give a command the options of an evaluation."""
    decorators = (
        click.option(
            "--evaluate", "data",
            help="Labelled instances to measure base, parents and result on: JSONL, a Hub id, or "
            "`reference`.",
        ),
        click.option("--mapping", help="How to read a data set: infinity-instruct, or YAML."),
        click.option(
            "--instances", type=_COUNT, help="Instances of each functionality (default: all)."
        ),
        click.option(
            "--by", type=click.Choice(["functionality", "task"]), default="functionality",
            help="What losses are told apart by.",
        ),
        click.option("--longest", type=_COUNT, default=512, help="Tokens of a text, at most."),
        click.option("--report", type=OUT, help="Folder for a page with figures of the losses."),
    )  # fmt: skip
    for decorate in reversed(decorators):
        command = decorate(command)
    return command


def require_sense(options: Mapping[str, Any]) -> None:
    """Refuse options that contradict each other, or have no effect, before any work is done."""
    from brickwork.errors import ConfigurationError
    from brickwork.report.extra import require_report

    if options["data"] is None:
        if idle := written_flags(_MEASURING):
            raise ConfigurationError(
                f"{', '.join(idle)} says how losses are measured and shown, and no data to measure "
                "them on is named; add --evaluate, or leave it out."
            )
    elif options["report"] is not None:
        require_report()


def read_evaluation(options: Mapping[str, Any]) -> "list[Instance]":
    """The instances, told apart as the options say."""
    from brickwork.errors import DataError

    found = read_labelled(options["data"], options)
    if options["by"] == "functionality":
        return found
    if any(not instance.task for instance in found):
        raise DataError(
            "losses by task were asked for, but some instances name no task; add the field, or "
            "leave --by out."
        )
    return [replace(instance, functionality=instance.task) for instance in found]


def evaluated(
    contenders: Sequence[Contender],
    instances: "Sequence[Instance]",
    *,
    method: str,
    options: Mapping[str, Any],
) -> "Tradeoff":
    """Measure everyone, one after the other."""
    from importlib.metadata import version

    from brickwork.measure.tradeoff import Member, Tradeoff

    order = {"base": 0, "parent": 1, "child": 2}
    members = []
    with progress("evaluate", len(contenders)) as advance:
        for contender in sorted(contenders, key=lambda c: order[c.role]):
            losses = contender.losses()
            members.append(Member(name=contender.name, role=contender.role, losses=losses))
            advance(1)
    measured = set(members[0].losses)
    counts = Counter(i.functionality for i in instances if i.functionality in measured)
    return Tradeoff(
        brickwork=version("brickwork"),
        method=method,
        data=data_name(options["data"]),
        by=options["by"],
        instances=dict(sorted(counts.items())),
        seed=options["seed"],
        members=tuple(members),
    )


def judged(
    contenders: Sequence[Contender],
    instances: "Sequence[Instance]",
    *,
    method: str,
    options: Mapping[str, Any],
) -> dict[str, Any]:
    """What a command says of everyone's losses; the page is written if one is asked for."""
    tradeoff = evaluated(contenders, instances, method=method, options=options)
    page = options["report"] and str(write_report(tradeoff, options["report"]))
    return {"tradeoff": tradeoff.model_dump(mode="json"), "report": page}


def write_report(tradeoff: "Tradeoff", folder: Path) -> Path:
    """Write ``tradeoff.json`` and the page with its figures; the page's path."""
    from brickwork.brick.durable import write_file
    from brickwork.brick.files import json_bytes
    from brickwork.measure.tradeoff import TRADEOFF_FILE
    from brickwork.report.tradeoff import write_tradeoff_report

    page = write_tradeoff_report(tradeoff, folder)[0]
    content = json_bytes(TRADEOFF_FILE, tradeoff.model_dump(mode="json"))
    write_file(folder / TRADEOFF_FILE, content)
    return page


def model_losses(
    loaded: "LoadedModel",
    instances: "Sequence[Instance]",
    *,
    longest: int,
    bricks: "Sequence[Brick]" = (),
) -> Losses:
    """Nats per response token of a model with bricks of weight 1, for each functionality."""
    from brickwork.measure.perplexity import response_losses

    sequences, labels = _encoded(loaded, instances, longest)
    if not bricks:
        return response_losses(loaded.model, sequences, labels)
    return _brick_losses(loaded, bricks, sequences, labels)


def _encoded(
    loaded: "LoadedModel", instances: "Sequence[Instance]", longest: int
) -> "tuple[list[Encoded], list[str]]":
    from brickwork.errors import DataError
    from brickwork.measure.instances import encode_instances

    known = getattr(loaded.model.config.get_text_config(), "max_position_embeddings", None)
    longest = min(longest, known or longest)
    encoded = encode_instances(loaded, instances, longest).sequences
    pairs = [
        (sequence, instance.functionality)
        for sequence, instance in zip(encoded, instances, strict=True)
        if sequence is not None
    ]
    absent = {i.functionality for i in instances} - {label for _, label in pairs}
    if absent:
        raise DataError(
            f"no instance of {', '.join(sorted(absent))} has a response left after {longest} "
            f"tokens of {loaded.name!r}; raise --longest, or leave them out."
        )
    return [sequence for sequence, _ in pairs], [label for _, label in pairs]


def _brick_losses(
    loaded: "LoadedModel",
    bricks: "Sequence[Brick]",
    sequences: "Sequence[Encoded]",
    labels: Sequence[str],
) -> Losses:
    from brickwork.brick.configuration import BrickUse, Configuration
    from brickwork.runtime.configured import ConfiguredModel
    from brickwork.runtime.score import mean_loss

    model = ConfiguredModel(loaded)
    names = [f"evaluated-{number}" for number in range(len(bricks))]
    for name, brick in zip(names, bricks, strict=True):
        model.add(brick, name)
    asked = Configuration(bricks=tuple(BrickUse(name=name) for name in names))
    pairs: dict[str, list[tuple[list[int], list[int]]]] = {}
    for sequence, label in zip(sequences, labels, strict=True):
        start = sequence.response_start
        pairs.setdefault(label, []).append((sequence.ids[:start], sequence.ids[start:]))
    return {label: mean_loss(model, pairs[label], asked) for label in sorted(pairs)}
