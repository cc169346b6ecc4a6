"""What ``brickwork grow task`` says: the stream before it is learned, and what came of it."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

    from brickwork.cli.grow_task_inputs import Stream
    from brickwork.grow.stream_results import StreamResult, StreamStudy
    from brickwork.model.load import LoadedModel


def describe(loaded: "LoadedModel", stream: "Stream", options: Mapping[str, Any]) -> dict[str, Any]:
    """The stream in numbers, before anything is learned."""
    from brickwork.model.cost import token_flops

    tokens = len(stream.tasks) * options["steps"] * options["batch"]
    return {
        "out": None if options["out"] is None else str(options["out"]),
        "dry_run": options["dry_run"],
        "model": loaded.name,
        "parameters": sum(p.numel() for p in loaded.model.parameters()),
        "tasks": {
            task.name: {"train": len(task.train), "measured": len(task.test), "text": task.text}
            for task in stream.tasks
        },
        "functionalities": {name: len(own.prompts) for name, own in stream.background.items()},
        "strategies": list(options["names"]),
        "router": options["router"],
        # Forth and back, for each strategy that trains of its own.
        "training_flops": 3 * token_flops(loaded.model) * tokens * len(options["names"]),
    }


def told(study: "StreamStudy") -> dict[str, Any]:
    """What the study says in short."""
    names = [task.name for task in study.tasks]
    return {"results": [_result(one, names) for one in study.results]}


def _result(one: "StreamResult", names: Sequence[str]) -> dict[str, Any]:
    from brickwork.grow.stream_measures import average, backward_transfer, forward_transfer

    before, after = one.losses[0], one.losses[-1]
    asked = [served for name, served in one.served.items() if name in one.base]
    return {
        "strategy": one.strategy,
        "loss": {"before": sum(before) / len(before), "after": average(one.losses)},
        "accuracy": {
            "before": sum(one.accuracies[0]) / len(before), "after": average(one.accuracies),
        },
        "tasks": {
            name: {"before": old, "after": new}
            for name, old, new in zip(names, before, after, strict=True)
        },
        "backward_transfer": backward_transfer(one.losses),
        "forward_transfer": forward_transfer(one.losses),
        "base": one.overall and one.overall.change.model_dump(),
        "routed_wrongly": {
            "base": sum(s.other for s in asked), "of": sum(s.prompts for s in asked),
        } if asked else None,
        "moved": {"instances": one.moved, "of": one.untouched},
        "parameters": one.costs[-1].parameters,
        "flops_per_token": one.costs[-1].flops,
        "seconds": sum(cost.seconds for cost in one.costs),
    }  # fmt: skip


def render(console: "Console", document: Mapping[str, Any]) -> None:
    """The same for a person."""

    def say(text: str) -> None:
        console.print(text, markup=False, soft_wrap=True)

    for name, own in document["tasks"].items():
        say(f"{name}: {own['train']:,} examples to learn from, {own['measured']:,} to measure on")
    base = ", ".join(f"{name} ({count})" for name, count in document["functionalities"].items())
    say(f"not to be forgotten: {base or 'nothing is measured; name some with --data'}")
    say(f"{document['training_flops']:.3g} FLOPs of training at most")
    if "results" in document:
        _results(console, document)
    for line in _merged(document):
        say(line)
    if document.get("routing"):
        say(f"retrieval by {document['routing']}")
    for name, reference in document.get("bricks", {}).items():
        if reference:
            say(f"{name}: in the store as {reference}")
    if document.get("report"):
        say(f"report: {document['report']}")
    if document["out"]:
        say(f"{'not learned (dry run)' if document['dry_run'] else 'written'}: {document['out']}")


def _results(console: "Console", document: Mapping[str, Any]) -> None:
    from rich.table import Table

    losses = Table("loss", *document["tasks"], "mean", "right", "base, change")
    first = document["results"][0]
    before = (f"{own['before']:.3f}" for own in first["tasks"].values())
    mean, right = f"{first['loss']['before']:.3f}", f"{first['accuracy']['before']:.0%}"
    losses.add_row("before", *before, mean, right, "")
    for one in document["results"]:
        after = (f"{own['after']:.3f}" for own in one["tasks"].values())
        base = one["base"]
        change = f"{base['value']:+.4f} [{base['low']:+.4f}, {base['high']:+.4f}]" if base else "-"
        losses.add_row(
            one["strategy"], *after, f"{one['loss']['after']:.3f}",
            f"{one['accuracy']['after']:.0%}", change,
        )  # fmt: skip
    console.print(losses)
    for one in document["results"]:
        for line in _lines(one):
            console.print(f"{one['strategy']}: {line}", markup=False, soft_wrap=True)


def _merged(document: Mapping[str, Any]) -> list[str]:
    """What consolidation did; nothing if it was not asked for."""
    found = document.get("consolidation")
    if found is None:
        asked = "consolidation" in document
        return ["no two bricks are so much alike, so none were merged"] if asked else []
    lines = [
        f"{one['name']}: in {one['group']}, loss {one['before']:.3f} alone and {one['after']:.3f} "
        f"merged (base {one['base']:.3f})"
        for one in found["tasks"]
        if one["group"]
    ]
    before, after = found["parameters_before"], found["parameters_after"]
    return [*lines, f"{before:,} numbers in bricks before, {after:,} after"]


def _lines(one: Mapping[str, Any]) -> list[str]:
    lines = [f"{one['parameters']:,} numbers more, {one['flops_per_token']:,} FLOPs a token"]
    if one["backward_transfer"] is not None:
        lines.append(f"tasks rose by {one['backward_transfer']:+.4f} nats after they were learned")
    if routed := one["routed_wrongly"]:
        moved = one["moved"]
        lines.append(
            f"{routed['base']} of {routed['of']} prompts of the base went to a brick; of the other "
            f"{moved['of']} answers {moved['instances']} differ from the base's, by any bit"
        )
    return lines
