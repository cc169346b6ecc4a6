"""``brickwork evaluate edits``: whether the edits of a ledger hold, and what else they change."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from brickwork.cli.console import emit, progress
from brickwork.cli.options import OUT, model_options, output_options, written_flags

if TYPE_CHECKING:
    from brickwork.model.load import LoadedModel
    from brickwork.model.train import Encoded
    from brickwork.update.edit import Edit
    from brickwork.update.evaluate import Material
    from brickwork.update.evaluation_results import EditEvaluation
    from brickwork.update.facts import Fact

_COUNT = click.IntRange(min=1)
_READ = click.Path(path_type=Path, exists=True, dir_okay=False)


@click.command()
@click.argument("model")
@click.option(
    "--ledger", type=click.Path(path_type=Path, exists=True, file_okay=False), required=True,
    help="Folder of the edits; those that act are evaluated.",
)  # fmt: skip
@click.option("--facts", type=_READ, help="Their facts with paraphrases, neighbours and so on.")
@click.option("--known", type=_READ, help="Other facts, whose old answers are to stay.")
@click.option("--template", default="{prompt}", help="Put around every prompt of these files.")
@click.option("--raw", is_flag=True, help="Give prompts without the chat template.")
@click.option("--data", help="Labelled instances for perplexities (`reference` has its own).")
@click.option("--mapping", help="How to read a data set: infinity-instruct, or a YAML file.")
@click.option("--instances", type=_COUNT, default=40, help="Of each functionality.")
@click.option("--longest", type=_COUNT, default=512, help="Tokens after which a text is cut.")
@click.option(
    "--generate", type=click.IntRange(min=0), default=40, help="Texts drawn to measure fluency."
)
@click.option("--revision", help="Branch, tag or commit of MODEL on the Hub.")
@click.option("-o", "--out", type=OUT, help="Folder for evaluation.json, a page and its figures.")
@model_options
@output_options
def edits(model: str, as_json: bool, **options: Any) -> None:
    """Measure the edits of a ledger on MODEL, with them and without.

    MODEL is a folder, a Hub id, or `reference`. The ledger knows the prompt of every fact. A file
    of facts (--facts, as given to `brickwork edit`) adds the prompts that tell whether an edit
    reaches other wordings and spares its neighbours; what else it holds counts as known facts.

    \b
    Examples:
      brickwork evaluate edits reference --ledger edits
      brickwork evaluate edits ./my-model --ledger edits --facts facts.jsonl -o page
    """
    from brickwork.cli.edit_inputs import open_edited
    from brickwork.cli.evaluate_view import render
    from brickwork.update.ledger import Ledger

    _require_sense(model, options)
    acting = Ledger.open(options["ledger"]).active()
    facts, others = _facts(acting, options)
    loaded = open_edited(model, options)
    acting = Ledger.open(options["ledger"], loaded.base.fingerprint).active()
    options["raw"] = options["raw"] or all(edit.record.raw for edit in acting)
    found = _evaluated(loaded, acting, facts, _material(loaded, model, others, options))
    document = found.model_dump(mode="json")
    document |= {"edits": len(acting), "failed": [fact.id for fact in found.failed]}
    if options["out"] is not None:
        document["out"] = str(_write(found, options["out"]))
    emit(document, as_json, lambda console: render(console, found, document))


def _require_sense(model: str, options: Mapping[str, Any]) -> None:
    """Refuse what would be passed over, before anything is loaded."""
    from brickwork.cli.edit_inputs import data_of
    from brickwork.errors import ConfigurationError
    from brickwork.report.extra import require_report

    idle = []
    if options["facts"] is None and options["known"] is None:
        idle += [(flag, "files of facts") for flag in written_flags(("template",))]
    if data_of(model, options) is None:
        measuring = ("mapping", "instances", "longest")
        idle += [(flag, "labelled instances") for flag in written_flags(measuring)]
    if idle:
        flag, what = idle[0]
        raise ConfigurationError(
            f"{flag} says how {what} are read, and none are named; name them, or leave it out."
        )
    if options["out"] is not None:
        require_report()


def _facts(acting: "Sequence[Edit]", options: Mapping[str, Any]) -> "tuple[list[Fact], list[Fact]]":
    """The facts that the edits teach, with all that the files say of them; and other facts."""
    from brickwork.errors import EditError
    from brickwork.update.fact_files import read_facts
    from brickwork.update.facts import Fact

    taught = {fact.id: fact for edit in acting for fact in edit.record.facts}
    if not taught:
        raise EditError(
            f"no edit of {str(options['ledger'])!r} acts, so there is nothing to evaluate; let one "
            "act with `brickwork ledger apply`."
        )
    names = ("id", "subject", "prompt", "target", "target_true", "relation")
    facts = {id: Fact(**{name: getattr(one, name) for name in names}) for id, one in taught.items()}
    given: list[Fact] = []
    if options["facts"] is not None:
        given = read_facts(options["facts"], template=options["template"])
        known = {fact.id: fact for fact in given if fact.id in facts}
        _require_same(facts, known, options["facts"])
        facts |= known
    others = [fact for fact in given if fact.id not in facts]
    if options["known"] is not None:
        others += read_facts(options["known"], template=options["template"])
    return list(facts.values()), others


def _require_same(taught: "Mapping[str, Fact]", given: "Mapping[str, Fact]", file: Path) -> None:
    """Refuse a file that is not of the facts that were taught."""
    from brickwork.errors import EditError

    if not given:
        raise EditError(
            f"{str(file)!r} has none of the {len(taught)} facts that the ledger teaches "
            f"({', '.join(list(taught)[:4])}); name the file that was given to `brickwork edit`."
        )
    for id, fact in given.items():
        for name in ("prompt", "target"):
            told, found = getattr(taught[id], name), getattr(fact, name)
            if told != found:
                raise EditError(
                    f"the fact {id!r} was taught with the {name} {told!r}, but {str(file)!r} has "
                    f"{found!r}; name its file, and the same --template."
                )


def _material(
    loaded: "LoadedModel", model: str, others: "Sequence[Fact]", options: Mapping[str, Any]
) -> "Material":
    from brickwork.cli.edit_inputs import data_of
    from brickwork.cli.inputs import data_name
    from brickwork.update.evaluate import Material

    data = data_of(model, options)
    return Material(
        others=others,
        instances={} if data is None else _instances(loaded, data, options),
        data="" if data is None else data_name(data),
        texts=options["generate"],
        raw=options["raw"],
        seed=options["seed"],
    )


def _instances(
    loaded: "LoadedModel", data: str, options: Mapping[str, Any]
) -> "dict[str, list[Encoded]]":
    """The instances of each functionality that have a response left."""
    from brickwork.cli.inputs import read_labelled
    from brickwork.measure.instances import encode_instances

    instances = read_labelled(data, options)
    config = loaded.model.config.get_text_config()
    longest = min(options["longest"], getattr(config, "max_position_embeddings", 1 << 30))
    found: dict[str, list[Encoded]] = {}
    encoded = encode_instances(loaded, instances, longest).sequences
    for instance, sequence in zip(instances, encoded, strict=True):
        if sequence is not None:
            found.setdefault(instance.functionality, []).append(sequence)
    return dict(sorted(found.items()))


def _evaluated(
    loaded: "LoadedModel", acting: "Sequence[Edit]", facts: "Sequence[Fact]", material: "Material"
) -> "EditEvaluation":
    from brickwork.runtime.configured import ConfiguredModel
    from brickwork.update.evaluate import evaluate_edits

    bricks = [edit.brick for edit in acting]
    model = ConfiguredModel(loaded)
    with progress("evaluating", 2) as advance:
        return evaluate_edits(
            loaded, facts, lambda: model.applied(bricks), material, advance=advance
        )


def _write(evaluation: "EditEvaluation", folder: Path) -> Path:
    from brickwork.brick.durable import write_file
    from brickwork.brick.files import json_bytes
    from brickwork.report.edits import write_edit_report
    from brickwork.update.evaluation_results import EVALUATION_FILE

    page = write_edit_report(evaluation, folder)[0]
    content = json_bytes(EVALUATION_FILE, evaluation.model_dump(mode="json"))
    write_file(folder / EVALUATION_FILE, content)
    return page
