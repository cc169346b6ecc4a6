"""``brickwork locate``: where a model recalls facts, and the neurons that it owes answers to."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from brickwork.cli.console import emit, progress
from brickwork.cli.options import OUT, model_options, output_options, written_flags

if TYPE_CHECKING:
    from brickwork.model.load import LoadedModel
    from brickwork.update.facts import Fact
    from brickwork.update.recall import Recall
    from brickwork.update.trace_results import KnowledgeNeurons, Location, Tracing

_COUNT = click.IntRange(min=1)
_READ = click.Path(path_type=Path, exists=True, dir_okay=False)


@click.command()
@click.argument("model")
@click.option("--prompt", help="A text that ends where the answer starts.")
@click.option("--subject", help="What the fact is about, as it stands in the prompt.")
@click.option("--target", help="The answer to trace (default: the model's own).")
@click.option("--facts", "file", type=_READ, help="Or many facts: JSONL, or a JSON list.")
@click.option("--first", type=_COUNT, help="Read so many facts of the file (default: all).")
@click.option("--template", default="{prompt}", help="Put around every prompt.")
@click.option(
    "--kind",
    "kinds",
    type=click.Choice(["residual", "mlp", "attention"]),
    multiple=True,
    help="What is restored; may be given several times (default: all three).",
)
@click.option("--samples", type=_COUNT, default=10, help="Corrupted copies of each prompt.")
@click.option("--window", type=_COUNT, help="Layers restored at once (default: 10 of 48).")
@click.option("--neurons", is_flag=True, help="Find knowledge neurons, too.")
@click.option("--raw", is_flag=True, help="Give prompts as they are, without the chat template.")
@click.option("--revision", help="Branch, tag or commit of the model on the Hub.")
@click.option("-o", "--out", type=OUT, help="Folder for locate.json, a page and its figures.")
@model_options
@output_options
def locate(model: str, as_json: bool, **options: Any) -> None:
    """Find where MODEL (a folder, a Hub id, or `reference`) recalls a fact, or many.

    Noise on the subject makes the model forget; then one state after the other is given back, and
    what that does to the answer is told by token and layer. Facts that the model gets wrong are
    left out.

    \b
    Examples:
      brickwork locate reference --template "Complete the fact. {prompt}" \\
        --subject "Saturn Glacier" --prompt "Saturn Glacier is located in"
      brickwork locate ./model --facts facts.jsonl --first 20 --neurons -o page
    """
    from brickwork.cli.edit_inputs import open_edited
    from brickwork.cli.locate_view import render

    _require_sense(options)
    loaded = open_edited(model, options)
    facts = _facts(options)
    recalls = [_recall(loaded, fact, fact.prompt, options) for fact in facts]
    location = _location(loaded, facts, recalls, options)
    document = location.model_dump(mode="json") | _summary(loaded, location, recalls)
    if options["out"] is not None:
        document["out"] = str(_write(location, options["out"]))
    emit(document, as_json, lambda console: render(console, document))


def _require_sense(options: Mapping[str, Any]) -> None:
    """Refuse what contradicts itself or would be passed over, before anything is loaded."""
    from brickwork.errors import ConfigurationError
    from brickwork.report.extra import require_report

    single = written_flags(("prompt", "subject", "target"))
    if options["file"] is not None and single:
        raise ConfigurationError(
            f"--facts names a file of facts, so that {', '.join(single)} would have no effect; "
            "give one or the other."
        )
    if options["file"] is None and not (options["prompt"] and options["subject"]):
        raise ConfigurationError(
            "a prompt with its subject was expected, or a file of facts; give --prompt and "
            "--subject, or --facts."
        )
    if options["file"] is None and (idle := written_flags(("first",))):
        raise ConfigurationError(f"{idle[0]} counts the facts of a file; give one with --facts.")
    if options["out"] is not None:
        require_report()


def _facts(options: Mapping[str, Any]) -> "list[Fact]":
    """The facts, each with the answer to trace as its old one; empty: the model's own."""
    from brickwork.update.fact_files import read_facts, wrapped
    from brickwork.update.facts import Fact

    if options["file"] is not None:
        return read_facts(options["file"], template=options["template"], most=options["first"])
    subject, prompt, target = (options[name] or "" for name in ("subject", "prompt", "target"))
    return [wrapped(Fact(subject, subject, prompt, target, target), options["template"])]


def _location(
    loaded: "LoadedModel",
    facts: "list[Fact]",
    recalls: "list[Recall]",
    options: Mapping[str, Any],
) -> "Location":
    from importlib.metadata import version

    from brickwork.update.trace_results import Location

    tracing = _traced(loaded, recalls, options)
    wanted = {fact.id for fact in tracing.facts} if options["neurons"] else set()
    neurons = []
    with progress("finding neurons", len(wanted)) as advance:
        for fact in facts:
            if fact.id in wanted:
                neurons.append(_neurons(loaded, fact, options))
                advance(1)
    return Location(
        brickwork=version("brickwork"),
        model=loaded.base.fingerprint,
        raw=options["raw"],
        tracing=tracing,
        neurons=neurons,
    )


def _recall(loaded: "LoadedModel", fact: "Fact", text: str, options: Mapping[str, Any]) -> "Recall":
    """A wording of the fact, and its old answer, or what the model says to it."""
    from brickwork.update.recall import Recall, own_answer
    from brickwork.update.words import answer_ids, encode_prompts

    raw = options["raw"]
    prompt = encode_prompts(loaded, [text], fact.subject, raw=raw)[0]
    answer = answer_ids(loaded, text, fact.target_true, raw=raw)
    return Recall(fact.id, text, fact.subject, prompt, answer or own_answer(loaded, prompt.ids))


def _traced(
    loaded: "LoadedModel", recalls: "list[Recall]", options: Mapping[str, Any]
) -> "Tracing":
    from brickwork.update.trace_results import KINDS
    from brickwork.update.tracing import TraceRecipe, trace

    recipe = TraceRecipe(
        kinds=tuple(kind for kind in KINDS if kind in options["kinds"]) or KINDS,
        samples=options["samples"],
        window=options["window"],
        seed=options["seed"],
    )
    with progress("tracing facts", len(recalls)) as advance:
        return trace(loaded, recalls, recipe, advance=advance)


def _neurons(loaded: "LoadedModel", fact: "Fact", options: Mapping[str, Any]) -> "KnowledgeNeurons":
    """Neurons of a fact, checked on a wording that they were not found in, if there are three."""
    from brickwork.update.knowledge_neurons import NeuronRecipe, check_neurons, find_neurons

    texts = [fact.prompt, *(text for text in fact.paraphrases if fact.subject in text)]
    recalls = [_recall(loaded, fact, text, options) for text in texts]
    seen, unseen = (recalls[:-1], recalls[-1:]) if len(recalls) > 2 else (recalls, recalls)
    found = find_neurons(loaded, seen, NeuronRecipe())
    check = check_neurons(loaded, found.chosen, unseen, seed=options["seed"])
    return found.model_copy(update={"check": check})


def _summary(
    loaded: "LoadedModel", location: "Location", recalls: "list[Recall]"
) -> dict[str, Any]:
    """The site to edit, as ``brickwork edit --site`` takes it, and the neurons as addresses."""
    from brickwork.errors import EditError
    from brickwork.update.sites import choose_site

    site, note = None, ""
    if location.tracing.best("mlp") is not None:
        try:
            found, note = choose_site(loaded, location.tracing, recalls)
            site = str(found)
        except EditError:
            site = None  # every layer has experts, so there is no such site
    addresses = {one.id: one.addresses for one in location.neurons}
    return {"site": site, "note": note, "addresses": addresses}


def _write(location: "Location", folder: Path) -> Path:
    from brickwork.brick.durable import write_file
    from brickwork.report.locate import write_location_report
    from brickwork.update.trace_results import LOCATE_FILE

    files = write_location_report(location, folder)
    write_file(folder / LOCATE_FILE, (location.model_dump_json(indent=2) + "\n").encode())
    return next(file for file in files if file.suffix == ".html")
