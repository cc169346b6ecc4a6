"""``brickwork stitch``: a family of models between two, joined by linear maps."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from brickwork.cli.console import emit, progress
from brickwork.cli.inputs import data_name, open_model, read_labelled
from brickwork.cli.options import OUT, model_options, output_options, written_flags

if TYPE_CHECKING:
    from brickwork.combine.stitch_results import Stitching
    from brickwork.combine.stitching import Point, StitchedFamily
    from brickwork.model.load import LoadedModel
    from brickwork.model.train import Encoded

_COUNT = click.IntRange(min=1)
_READ = click.Path(path_type=Path, exists=True, file_okay=False)


@click.command()
@click.argument("front")
@click.argument("back")
@click.option("--data", help="Labelled instances (default if FRONT or BACK is `reference`: its).")
@click.option("--front-revision", help="Branch, tag or commit of FRONT on the Hub.")
@click.option("--back-revision", help="Branch, tag or commit of BACK on the Hub.")
@click.option("--mapping", help="How to read a data set: infinity-instruct, or a YAML file.")
@click.option("--instances", type=_COUNT, help="Instances of each functionality (default: all).")
@click.option("--points", help="Where to stitch: 2:3,4:5 is 2 blocks of FRONT, then BACK from 3.")
@click.option("--count", type=_COUNT, default=4, help="Or how many points, at equal depth in both.")
@click.option("--tune-steps", type=click.IntRange(min=0), default=0, help="Batches to tune on.")
@click.option("-o", "--out", type=OUT, help="Folder for the maps; must not exist.")
@click.option("--report", type=OUT, help="Folder for a page with the curve.")
@click.option("--open", "opened", type=_READ, help="Folder of maps: fit nothing, answer with them.")
@click.option("--answer", help="An instruction that every member answers.")
@click.option("--max-new-tokens", type=_COUNT, default=64, help="Longest answer.")
@click.option(
    "--evaluation",
    type=_COUNT,
    default=40,
    help="Instances of each functionality that losses are measured on, at most a fifth of it.",
)
@click.option("--longest", type=_COUNT, default=512, help="Tokens after which a text is cut.")
@click.option("--dry-run", is_flag=True, help="Say what members will cost; measure nothing.")
@model_options
@output_options
def stitch(front: str, back: str, as_json: bool, **options: Any) -> None:
    """Join the first blocks of FRONT to the last blocks of BACK by a linear map, at many points.

    FRONT and BACK are folders, Hub ids, or `reference`; they may have different widths and
    families, but must have one tokenizer. Losses are told of instances that no map was fitted on,
    beside those of the two models. OUT holds the maps and no copy of the models.

    \b
    Examples:
      brickwork stitch reference reference --count 3 -o family --report page
      brickwork stitch ./small ./large --data data.jsonl --points 2:4,3:6 --tune-steps 300 -o family
      brickwork stitch ./small ./large --open family --answer "What is 12 + 17?"
    """  # fmt: skip
    from brickwork.cli.stitch_view import render, render_plan

    _require_sense(options)
    if options["dry_run"]:
        document = _plan(front, back, options)
        emit(document, as_json, lambda console: render_plan(console, document))
        return
    document = _opened(front, back, options) if options["opened"] else _made(front, back, options)
    emit(document, as_json, lambda console: render(console, document))


def _require_sense(options: Mapping[str, Any]) -> None:
    """Refuse what contradicts itself or would be passed over, before anything is loaded."""
    from brickwork.brick.durable import require_free
    from brickwork.errors import ConfigurationError, ModelError
    from brickwork.report.extra import require_report

    if options["opened"] and (idle := written_flags(_MAKING)):
        raise ConfigurationError(
            f"--open reads maps that are fitted already, so that "
            f"{', '.join(idle)} would have no effect; "
            "leave --open out to fit anew, or the others."
        )
    if options["points"] and (idle := written_flags(("count",))):
        raise ConfigurationError(
            f"--points says where to stitch, so that {idle[0]} would have no effect; leave out one "
            "of them."
        )
    if options["opened"] and not options["answer"]:
        raise ConfigurationError(
            "--open was given and nothing to do with it; give an instruction with --answer."
        )
    if options["dry_run"]:
        return
    if not options["opened"] and options["out"] is None and options["report"] is None:
        raise ConfigurationError(
            "there is nowhere to write to; name a folder for the maps (-o) or for a page "
            "(--report), or ask for a --dry-run."
        )
    if options["out"] is not None:
        require_free(options["out"], "a model", ModelError)
    if options["report"] is not None:
        require_report()


_MAKING = (
    "data", "instances", "mapping", "points", "count", "tune_steps", "evaluation", "longest",
    "out", "report", "dry_run",
)  # fmt: skip


def _pair(
    front: str, back: str, options: Mapping[str, Any], *, outline: bool = False
) -> "tuple[LoadedModel, LoadedModel]":
    from brickwork.combine.stitching import require_pair

    first, last = (
        open_model(model, {**options, "revision": revision}, outline=outline, tokenizer=True)
        for model, revision in (
            (front, options["front_revision"]),
            (back, options["back_revision"]),
        )
    )
    require_pair(first, last)
    return first, last


def _points(front: "LoadedModel", back: "LoadedModel", options: Mapping[str, Any]) -> "list[Point]":
    from brickwork.combine.stitching import parse_points, require_points, spread_points
    from brickwork.model.parts import layers_of

    if options["points"]:
        points = parse_points(options["points"])
        require_points(front, back, points)
        return points
    return spread_points(layers_of(front.model), layers_of(back.model), options["count"])


def _plan(front: str, back: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """What members will cost: shapes are enough to tell."""
    import torch

    from brickwork.combine.stitch_family import model_cost
    from brickwork.combine.stitching import Stitch, StitchedFamily, width_of

    first, last = _pair(front, back, options, outline=True)
    shape = width_of(last), width_of(first)
    empty = torch.empty(shape, device="meta"), torch.empty(shape[0], device="meta")
    points = _points(first, last, options)
    family = StitchedFamily(first, last, tuple(Stitch(point, *empty) for point in points))
    members = []
    for kind, point in (
        ("front", max(family.ends)), *(("stitched", p) for p in points), ("back", min(family.ends)),
    ):  # fmt: skip
        parameters, flops = model_cost(family.model(point))
        name = str(point) if kind == "stitched" else kind
        members.append({"name": name, "parameters": parameters, "flops": flops})
    return {"front": first.name, "back": last.name, "members": members}


def _made(front: str, back: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Fit, tune, measure and write."""
    from brickwork.combine.stitch_family import write_stitched
    from brickwork.report.stitching import write_stitching_report

    first, last = _pair(front, back, options)
    points = _points(first, last, options)
    data = _data(front, back, options)
    fitting, evaluation = _sequences(first, last, data, options)
    family, stitching = _family(first, last, points, fitting, evaluation, options)
    document = _document(stitching)
    if options["out"] is not None:
        write_stitched(family, stitching, options["out"])
        document["out"] = str(options["out"])
    if options["report"] is not None:
        files = write_stitching_report(stitching, options["report"])
        document["report"] = str(next(file for file in files if file.suffix == ".html"))
    return document | _answers(family, options)


def _family(
    first: "LoadedModel",
    last: "LoadedModel",
    points: "list[Point]",
    fitting: "list[Encoded]",
    evaluation: "dict[str, list[Encoded]]",
    options: Mapping[str, Any],
) -> "tuple[StitchedFamily, Stitching]":
    """The family, tuned if that is asked for, and what was measured of it."""
    from brickwork.combine.stitch_family import describe, measure_family
    from brickwork.combine.stitch_tune import TuneRecipe, tune_stitches
    from brickwork.combine.stitching import RIDGE, StitchedFamily, fit_stitches

    held_out = [sequence for own in evaluation.values() for sequence in own]
    with progress("fitting maps", len(fitting) + len(held_out)) as advance:
        stitches = fit_stitches(first, last, fitting, points, held_out=held_out, advance=advance)
    family = StitchedFamily(first, last, stitches)
    with progress("measuring losses", len(points) + 2) as advance:
        members = measure_family(family, evaluation, advance=advance)
    steps = options["tune_steps"]
    if steps:
        recipe = TuneRecipe(steps=steps, seed=options["seed"])
        with progress("tuning maps", steps) as advance:
            family = tune_stitches(family, fitting, recipe, report=lambda *_step: advance(1))
        with progress("measuring losses", len(points) + 2) as advance:
            members = measure_family(family, evaluation, untuned=members, advance=advance)
    about = {
        "data": data_name(options["data"] or "reference"),
        "fitted_on": len(fitting),
        "fitted_tokens": sum(len(sequence.ids) for sequence in fitting),
        "measured_on": {name: len(own) for name, own in evaluation.items()},
        "ridge": RIDGE,
        "tune_steps": steps,
        "seed": options["seed"],
    }
    return family, describe(family, members, about)


def _data(front: str, back: str, options: Mapping[str, Any]) -> str:
    from brickwork.errors import ConfigurationError

    data: str | None = options["data"] or ("reference" if "reference" in (front, back) else None)
    if data is None:
        raise ConfigurationError(
            "maps are fitted on labelled instances, and none were named; name some with --data."
        )
    return data


def _sequences(
    first: "LoadedModel", last: "LoadedModel", data: str, options: Mapping[str, Any]
) -> "tuple[list[Encoded], dict[str, list[Encoded]]]":
    """Those to fit on, and those of each functionality to measure on."""
    from brickwork.measure.instances import encode_instances, split_instances

    instances = read_labelled(data, options)
    split = split_instances(instances, evaluation=options["evaluation"], seed=options["seed"])
    limits = (
        getattr(each.model.config.get_text_config(), "max_position_embeddings", None)
        for each in (first, last)
    )
    longest = min([options["longest"], *(limit for limit in limits if limit)])
    encoded = encode_instances(last, instances, longest).sequences
    fitting = [s for i in split.localisation if (s := encoded[i]) is not None]
    evaluation: dict[str, list[Encoded]] = {}
    for i in split.evaluation:
        sequence = encoded[i]
        if sequence is not None:
            evaluation.setdefault(instances[i].functionality, []).append(sequence)
    return fitting, evaluation


def _opened(front: str, back: str, options: Mapping[str, Any]) -> dict[str, Any]:
    from brickwork.combine.stitch_family import open_stitched, read_stitching

    stitching = read_stitching(options["opened"])
    family = open_stitched(options["opened"], *_pair(front, back, options))
    return _document(stitching) | _answers(family, options)


def _document(stitching: "Stitching") -> dict[str, Any]:
    """The kept document, and for each member its name and its distance from the line."""
    document = stitching.model_dump(mode="json")
    for row, member in zip(document["members"], stitching.members, strict=True):
        row |= {
            "name": member.name,
            "loss": member.loss,
            "from_line": member.loss - stitching.mixed_loss(member.flops),
        }
    return document


def _answers(family: "StitchedFamily", options: Mapping[str, Any]) -> dict[str, Any]:
    """What every member says to the instruction, by its likeliest tokens."""
    if not options["answer"]:
        return {}
    import torch

    from brickwork.model.words import decoded, encode

    ids = torch.tensor(encode(family.back, [options["answer"]]), device=family.back.device)
    length = min(options["max_new_tokens"], _room(family, ids.shape[1]))
    limits: dict[str, Any] = {"max_new_tokens": length, "do_sample": False}
    whole, none = max(family.ends), min(family.ends)
    names = {whole: "front", none: "back"}
    answers = {}
    for point in (whole, *(stitch.point for stitch in family.stitches), none):
        model: Any = family.model(point)
        said = model.generate(ids, attention_mask=torch.ones_like(ids), **limits)[0, ids.shape[1] :]
        answers[names.get(point, str(point))] = decoded(family.back, said.tolist()).strip()
    return {"answers": answers}


def _room(family: "StitchedFamily", prompt: int) -> int:
    """How many tokens an answer can have in both models."""
    from brickwork.errors import ConfigurationError

    models = (family.front.model, family.back.model)
    limits = [getattr(m.config.get_text_config(), "max_position_embeddings", None) for m in models]
    most = min((limit for limit in limits if limit), default=prompt + 1_000_000)
    if most <= prompt:
        raise ConfigurationError(
            f"the instruction has {prompt} tokens, and the models know {most} positions; "
            "shorten it."
        )
    return most - prompt
