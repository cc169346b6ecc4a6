"""``brickwork search``: learn weights of bricks, or search for a recipe that combines them."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from brickwork.cli.console import emit, progress
from brickwork.cli.inputs import data_name, open_model, read_labelled
from brickwork.cli.options import OUT, model_options, output_options, written_flags
from brickwork.cli.search_view import render_learned, render_plan, render_search

if TYPE_CHECKING:
    from brickwork.brick.brick import Brick
    from brickwork.combine.candidates import Pair, Split
    from brickwork.combine.search_recipe import SearchRecipe
    from brickwork.model.load import LoadedModel

_COUNT = click.IntRange(min=1)


@click.command()
@click.argument("recipe", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option(
    "--data", required=True, help="Labelled instances: JSONL, a folder, a Hub id, or `reference`."
)
@click.option("--held-out", help="Instances to report on (default: a part of the data).")
@click.option(
    "--share", type=click.FloatRange(0, 1, min_open=True, max_open=True), default=0.4,
    help="Part of the data that is held out, if no other is named.",
)  # fmt: skip
@click.option("--mapping", help="How to read a data set: infinity-instruct, or a YAML file.")
@click.option("--function", "functions", multiple=True, help="Only these functionalities.")
@click.option("--instances", type=_COUNT, help="Instances of each functionality (default: all).")
@click.option("--longest", type=_COUNT, default=512, help="Tokens after which a text is cut.")
@click.option(
    "--store", "store_path", type=click.Path(path_type=Path),
    help="Store with the bricks (default: the built-in one for the reference model).",
)  # fmt: skip
@click.option("--worker", type=click.IntRange(min=0), default=0,
              help="Number of this process, if several search in one folder.")  # fmt: skip
@click.option("--revision", help="Branch, tag or commit of the base on the Hub.")
@click.option(
    "-o", "--out", type=OUT, required=True, help="Folder; a search there is gone on with."
)
@click.option("--dry-run", is_flag=True, help="Say what would be tried; run nothing.")
@model_options
@output_options
def search(recipe: Path, out: Path, as_json: bool, **options: Any) -> None:
    """Find out how bricks, or whole models, are best combined, as RECIPE says.

    RECIPE is YAML with `base`, `bricks` or `models`, and `learn` or `search`. OUT gets the result
    as JSON, a combined brick, and a configuration for `brickwork run --config` or a page.

    \b
    Examples:
      brickwork search recipe.yaml --data reference --instances 20 -o found
      brickwork search recipe.yaml --data mine.jsonl --held-out others.jsonl -o found
    """
    from brickwork.combine.search_recipe import read_search_recipe

    asked = read_search_recipe(recipe)
    _require_sense(asked, options)
    if options["dtype"] == "auto" and asked.base == "reference":
        options["dtype"] = "float32"  # as fast on a CPU, and without rounding
    loaded = open_model(asked.base, options, outline=options["dry_run"], tokenizer=True)
    split = _split(loaded, options)
    if options["dry_run"]:
        document = _plan(asked, split, options)
        emit(document, as_json, lambda console: render_plan(console, document))
    elif asked.learn is not None:
        document = _learn(asked, loaded, split, out, options)
        emit(document, as_json, lambda console: render_learned(console, document))
    else:
        document = _search(asked, loaded, split, out, options)
        emit(document, as_json, lambda console: render_search(console, document))


def _require_sense(asked: "SearchRecipe", options: dict[str, Any]) -> None:
    """Refuse options that would have no effect, before anything is loaded."""
    from brickwork.errors import ConfigurationError

    idle = written_flags(("worker",)) if asked.learn is not None else []
    idle += written_flags(("share",)) if options["held_out"] is not None else []
    if idle:
        raise ConfigurationError(
            f"{', '.join(idle)} would have no effect on what is asked for: --worker is for "
            "`search`, --share for data without --held-out; leave it out."
        )


def _split(loaded: "LoadedModel", options: dict[str, Any]) -> "Split":
    from brickwork.combine.candidates import Split, require_apart, split_pairs

    pairs = _pairs(loaded, options["data"], options)
    if options["held_out"] is None:
        return split_pairs(pairs, options["share"], options["seed"])
    split = Split(pairs, _pairs(loaded, options["held_out"], options))
    require_apart(split.search, split.held_out)
    return split


def _pairs(loaded: "LoadedModel", data: str, options: dict[str, Any]) -> "list[Pair]":
    from brickwork.errors import UnknownNameError
    from brickwork.measure.instances import encode_instances

    found = read_labelled(data, options)
    known, wanted = {i.functionality for i in found}, options["functions"]
    for name in wanted:
        if name not in known:
            raise UnknownNameError("functionality of the data", name, known)
    kept = [i for i in found if not wanted or i.functionality in wanted]
    config = loaded.model.config.get_text_config()
    longest = min(options["longest"], getattr(config, "max_position_embeddings", 1 << 30))
    sequences = encode_instances(loaded, kept, longest).sequences
    return [(i, s) for i, s in zip(kept, sequences, strict=True) if s is not None]


def _plan(asked: "SearchRecipe", split: "Split", options: dict[str, Any]) -> dict[str, Any]:
    """What would be tried, once it is known that all that is named is there."""
    from brickwork.combine.candidates import require_objectives
    from brickwork.combine.search_space import space_of

    if asked.bricks:
        _bricks(asked, options)
    for model in asked.models:
        open_model(model, options, outline=True)
    if asked.search is not None:
        sized = bool(asked.bricks) and len(asked.search.ranks) > 1
        for side in (split.search, split.held_out):
            require_objectives(asked.search.objectives, side, sized=sized)
    operands = asked.bricks or asked.models
    axes = [] if asked.search is None else space_of(
        asked.search, len(operands), has_base=True
    ).axes  # fmt: skip
    return {
        "operands": list(operands),
        "instances": len(split.search),
        "held_out": len(split.held_out),
        "axes": len(axes),
        "tries": asked.search.trials if asked.search else asked.learn.steps if asked.learn else 0,
    }


def _bricks(asked: "SearchRecipe", options: dict[str, Any]) -> "list[Brick]":
    from brickwork.reference.builtin import builtin_store
    from brickwork.reference.paths import NAME
    from brickwork.store.store import Store, default_path

    path = options["store_path"]
    if path is None and asked.base == NAME:
        store = builtin_store()
    else:
        store = Store.open(path or default_path(), create=path is None)
    with store:
        return [store.get(name) for name in asked.bricks]


def _learn(
    asked: "SearchRecipe", loaded: "LoadedModel", split: "Split", out: Path, options: dict[str, Any]
) -> dict[str, Any]:
    from importlib.metadata import version

    from brickwork.brick.durable import write_file
    from brickwork.brick.files import json_bytes
    from brickwork.brick.folder import write_brick
    from brickwork.combine.candidates import BrickTrials
    from brickwork.combine.learning import learn_coefficients
    from brickwork.combine.search_results import LEARNED_FILE, LearnedResult
    from brickwork.combine.search_space import Candidate

    assert asked.learn is not None
    bricks = _bricks(asked, options)
    with progress("learning", asked.learn.steps) as advance:
        lesson = learn_coefficients(
            loaded, bricks, asked.learn, split, seed=options["seed"], advance=advance
        )
    weights = lesson.learned.weights
    result = LearnedResult(
        brickwork=version("brickwork"), base=asked.base,
        fingerprint=loaded.base.fingerprint.weights, by=asked.learn.by,
        data=data_name(options["data"]), instances=len(split.search),
        held_out_instances=len(split.held_out), seed=options["seed"],
        evaluations=lesson.learned.evaluations,
        weights=dict(zip(asked.bricks, weights, strict=True)),
        search=lesson.search, held_out=lesson.held_out, history=lesson.learned.history,
    )  # fmt: skip
    out.mkdir(parents=True, exist_ok=True)
    document: dict[str, Any] = {"out": str(out), **result.model_dump(mode="json")}
    write_file(out / LEARNED_FILE, json_bytes(LEARNED_FILE, result.model_dump(mode="json")))
    if len(weights[0]) == 1:
        document["configuration"] = _write_configuration(asked, weights, out)
    if len({brick.spec.form for brick in bricks}) == 1:
        own = {n: tuple(row[n] for row in weights) for n in range(len(weights[0]))}
        blocks = tuple({"weight": own[n], "normalize": False} for n in own)
        trials = BrickTrials(loaded, bricks, len(blocks))
        made = trials.brick(Candidate("linear", blocks), options["seed"], name="learned")
        write_brick(made, out / "brick", replace=True)
        document["brick"] = str(out / "brick")
    return document


def _write_configuration(asked: "SearchRecipe", weights: Any, out: Path) -> str:
    import yaml

    from brickwork.brick.configuration import parse_configuration
    from brickwork.brick.durable import write_file

    uses = [
        {"name": n, "weight": round(w[0], 6)} for n, w in zip(asked.bricks, weights, strict=True)
    ]
    configuration = parse_configuration({"base": asked.base, "bricks": uses}, "what was learned")
    text = yaml.safe_dump(configuration.model_dump(mode="json"), sort_keys=False)
    write_file(out / "configuration.yaml", text.encode())
    return str(out / "configuration.yaml")


def _search(
    asked: "SearchRecipe", loaded: "LoadedModel", split: "Split", out: Path, options: dict[str, Any]
) -> dict[str, Any]:
    from brickwork.brick.durable import write_file
    from brickwork.brick.files import json_bytes
    from brickwork.brick.folder import write_brick
    from brickwork.combine.candidates import BrickTrials, ModelTrials
    from brickwork.combine.contest import Contest, hold_contest
    from brickwork.combine.search_results import SEARCH_FILE
    from brickwork.report.extra import require_report
    from brickwork.report.search import best_trial, write_search_report

    require_report()
    assert asked.search is not None
    trials: BrickTrials | ModelTrials
    if asked.bricks:
        trials = BrickTrials(loaded, _bricks(asked, options), asked.search.blocks)
    else:
        models = {name: open_model(name, options).model for name in asked.models}
        trials = ModelTrials(loaded, models, asked.search.blocks)
    contest = Contest(
        asked, trials, split, data_name(options["data"]), options["seed"], options["worker"]
    )
    with progress("searching", asked.search.trials) as advance:
        result = hold_contest(contest, out, advance=advance)
    plain = result.model_dump(mode="json")
    write_file(out / SEARCH_FILE, json_bytes(SEARCH_FILE, plain))
    pages = write_search_report(result, out)
    page = next(page for page in pages if page.suffix == ".html")
    document: dict[str, Any] = {"out": str(out), "report": str(page), **plain}
    best = best_trial(result)
    if isinstance(trials, BrickTrials) and best is not None:
        from brickwork.combine.search_space import Candidate

        candidate = Candidate(best.method, best.parameters, best.rank)
        write_brick(trials.brick(candidate, best.seed, "found"), out / "brick", replace=True)
        document["brick"] = str(out / "brick")
    return document
