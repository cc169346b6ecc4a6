"""``brickwork run``: put a model together for one instruction and let it answer."""

import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from brickwork.cli.console import emit, stderr_console
from brickwork.cli.options import model_options, output_options

if TYPE_CHECKING:
    from brickwork.brick.configuration import Configuration
    from brickwork.model.load import LoadedModel
    from brickwork.runtime.configured import ConfiguredModel
    from brickwork.runtime.plan import Plan
    from brickwork.store.store import Store


@click.command()
@click.argument("instruction")
@click.option("--model", default=None, help="Hub id, folder, or 'reference' (the default).")
@click.option(
    "--store", "store_path", type=click.Path(path_type=Path), default=None,
    help="Store with the bricks (default: the built-in one for the reference model).",
)  # fmt: skip
@click.option("--bricks", default=None, help="Bricks to use: fr-en,shell@2:0.5 ('' for none).")
@click.option("--auto", is_flag=True, help="Retrieve the bricks; the default without --bricks.")
@click.option(
    "--config", "config_path", type=click.Path(path_type=Path, exists=True, dir_okay=False),
    default=None, help="A configuration in YAML or JSON instead of --bricks.",
)  # fmt: skip
@click.option(
    "--edits", "ledger", type=click.Path(path_type=Path, exists=True, file_okay=False),
    default=None, help="Ledger of edits; those that are applied act, beside the bricks.",
)  # fmt: skip
@click.option("--max-new-tokens", type=int, default=None, help="Longest answer (default 64).")
@click.option("--temperature", type=float, default=None, help="0 takes the likeliest token.")
@click.option("--top-p", type=float, default=None, help="Sample from this share of probability.")
@click.option(
    "--embedder", type=click.Path(path_type=Path, exists=True, file_okay=False), default=None,
    help="Folder of a sentence-transformers model for retrieval.",
)  # fmt: skip
@click.option("--skip-layers", default="", help="Blocks to leave out: 3,5-6.")
@click.option("--exit-layers", default="", help="Blocks after which a sure token leaves: 3-6.")
@click.option(
    "--confidence", type=click.FloatRange(0, 1), default=0.9,
    help="How likely the next token must be for that.",
)  # fmt: skip
@click.option("--raw", is_flag=True, help="Give the text to the model without a chat template.")
@click.option("--explain", is_flag=True, help="Show the plan and what each brick did.")
@click.option("--dry-run", is_flag=True, help="Show the plan with its costs; generate nothing.")
@model_options
@output_options
def run(instruction: str, as_json: bool, **options: Any) -> None:
    """Answer INSTRUCTION with the bricks that suit it, or those named.

    INSTRUCTION is text, or - to read it from standard input.

    \b
    Examples:
      brickwork run "Translate to English: Il fait froid."
      brickwork run "What is 12 + 17?" --bricks addition --explain
      brickwork run "..." --model ./my-model --store ./my-store --auto
      brickwork run "The capital of France is" --raw --edits ./my-ledger
      brickwork run "..." --skip-layers 5 --exit-layers 3-6 --confidence 0.8 --explain
    """
    from brickwork.brick.configuration import Configuration, read_configuration

    if sum((options["bricks"] is not None, options["auto"], bool(options["config_path"]))) > 1:
        raise click.UsageError("give only one of --bricks, --auto and --config.")
    text = sys.stdin.read() if instruction == "-" else instruction
    given = read_configuration(options["config_path"]) if options["config_path"] else None
    asked = _with_options(given or Configuration(), options)
    started = time.perf_counter()
    with _opened_store(options["store_path"], asked.base) as store:
        document = _answer(text, asked, given is not None, store, as_json, options)
    document["seconds"] = time.perf_counter() - started
    emit(document, as_json, lambda console: _render(console, document, options))


def _with_options(configuration: "Configuration", options: dict[str, Any]) -> "Configuration":
    from brickwork.brick.configuration import parse_configuration, parse_uses

    names = ("max_new_tokens", "temperature", "top_p")
    changed = {name: options[name] for name in names if options[name] is not None}
    seed = {"seed": options["seed"]} if options["seed"] else {}
    document = configuration.model_dump()
    document["options"].update({**changed, **seed})
    if options["model"] is not None:
        document["base"] = options["model"]
    if options["bricks"] is not None:
        document["bricks"] = [use.model_dump() for use in parse_uses(options["bricks"])]
    return parse_configuration(document, "the command line")


def _opened_store(path: Path | None, base: str) -> "Store":
    from brickwork.reference.builtin import builtin_store
    from brickwork.reference.paths import NAME
    from brickwork.store.store import Store, default_path

    if path is not None:
        return Store.open(path, create=False)
    return builtin_store() if base == NAME else Store.open(default_path())


def _answer(
    text: str,
    asked: "Configuration",
    fixed: bool,
    store: "Store",
    as_json: bool,
    options: dict[str, Any],
) -> dict[str, Any]:
    from brickwork.model.load import load_model
    from brickwork.reference.paths import NAME, resolve_model
    from brickwork.runtime.configured import ConfiguredModel

    # The packaged weights are small, and a CPU computes in float32 what it would in bfloat16 only
    # slowly; for all other models "auto" is the checkpoint's own.
    packaged = asked.base == NAME and options["dtype"] == "auto"
    loaded = load_model(
        resolve_model(asked.base),
        device=options["device"],
        dtype="float32" if packaged else options["dtype"],
        name=asked.base if asked.base == NAME else "",
    )
    model = ConfiguredModel(loaded, store)
    document: dict[str, Any] = {
        "model": asked.base,
        "store": str(store.folder),
        "instruction": text,
    }
    reasons: dict[str, str] = {}
    if not fixed and options["bricks"] is None:
        asked, reasons, document["bricks"] = _selected(text, asked, loaded, store, options)
    asked = _with_layers(asked, model, options)
    asked, reasons = _with_edits(asked, model, reasons, options["ledger"])
    plan = model.plan([asked], [reasons])
    document["plan"] = plan.as_document()
    if not options["dry_run"]:
        document.update(_generated(model, text, plan, not as_json, options))
    return document


def _with_layers(
    asked: "Configuration", model: "ConfiguredModel", options: dict[str, Any]
) -> "Configuration":
    """The configuration with the bricks that the options about layers ask for."""
    from brickwork.brick.address import parse_numbers
    from brickwork.brick.configuration import BrickUse
    from brickwork.build.layers import exit_brick, skip_brick

    bricks = []
    if options["skip_layers"]:
        bricks.append(skip_brick(model.loaded, parse_numbers(options["skip_layers"])))
    if options["exit_layers"]:
        layers = parse_numbers(options["exit_layers"])
        bricks.append(exit_brick(model.loaded, layers, options["confidence"]))
    for brick in bricks:
        model.add(brick)
    uses = (*asked.bricks, *(BrickUse(name=brick.spec.name) for brick in bricks))
    return asked.model_copy(update={"bricks": uses})


def _with_edits(
    asked: "Configuration",
    model: "ConfiguredModel",
    reasons: dict[str, str],
    folder: Path | None,
) -> tuple["Configuration", dict[str, str]]:
    """The configuration with the edits of a ledger that are applied, and why each is there."""
    if folder is None:
        return asked, reasons
    from brickwork.brick.configuration import BrickUse
    from brickwork.update.ledger import Ledger

    edits = Ledger.open(folder, model.loaded.base.fingerprint).active()
    for edit in edits:
        model.add(edit.brick, edit.id)
    uses = (*asked.bricks, *(BrickUse(name=edit.id) for edit in edits))
    told = {edit.id: f"an edit (facts: {len(edit.record.facts)})" for edit in edits}
    return asked.model_copy(update={"bricks": uses}), reasons | told


def _selected(
    text: str,
    asked: "Configuration",
    loaded: "LoadedModel",
    store: "Store",
    options: dict[str, Any],
) -> tuple["Configuration", dict[str, str], list[dict[str, Any]]]:
    from brickwork.reference.builtin import background_instructions
    from brickwork.reference.paths import NAME
    from brickwork.runtime.auto import Selector

    background = background_instructions() if asked.base == NAME else ()
    selector = Selector(loaded, store, embedder=options["embedder"], background=background)
    if selector.choice.warning:
        stderr_console().print(f"Note: {selector.choice.warning}", style="yellow", markup=False)
    selection = selector.select(text, asked.options, asked.base)
    chosen = {use.name: use.weight for use in selection.configuration.bricks}
    hits = [
        {"name": h.reference, "score": h.score, "threshold": h.threshold,
         "weight": chosen.get(h.reference, 0.0)}
        for h in selection.retrieval.hits
    ]  # fmt: skip
    return selection.configuration, selection.reasons, hits


def _generated(
    model: "ConfiguredModel", text: str, plan: "Plan", live: bool, options: dict[str, Any]
) -> dict[str, Any]:
    from brickwork.runtime.trace import trace

    pieces = []
    with model.packed() if plan.keeps_part_of_ffns else nullcontext():
        for piece in model.stream([text], plan, raw=options["raw"]):
            pieces.append(piece)
            if live:
                click.echo(piece.text, nl=False)
                sys.stdout.flush()
    if live:
        click.echo()
    document: dict[str, Any] = {"answer": "".join(piece.text for piece in pieces)}
    if options["exit_layers"] and pieces:
        document["blocks_per_token"] = sum(piece.blocks for piece in pieces) / len(pieces)
    if options["explain"] and pieces:
        prompt = model.encode([text], raw=options["raw"])[0]
        said = [piece.token for piece in pieces]
        document["trace"] = trace(model, prompt, said, plan.rows[0].configuration).as_document()
    return document


def _render(console: Any, document: dict[str, Any], options: dict[str, Any]) -> None:
    if not (options["explain"] or options["dry_run"]):
        return
    row = document["plan"]["rows"][0]
    for hit in document.get("bricks", []):
        mark = f"weight {hit['weight']:g}" if hit["weight"] else "not chosen"
        console.print(
            f"considered {hit['name']}: score {hit['score']:.2f}, threshold "
            f"{hit['threshold']:.2f}, {mark}", style="dim", markup=False,
        )  # fmt: skip
    for brick in row["bricks"]:
        console.print(
            f"brick {brick['name']} ({brick['form']}, weight {brick['weight']:g}): "
            f"{brick['reason']}; {brick['bytes']:,} bytes", markup=False,
        )  # fmt: skip
    if not row["bricks"]:
        console.print("no brick: the bare base")
    console.print(
        f"cost {row['flops_per_token'] / 1e6:.1f} MFLOP per token "
        f"({row['flops_added']:+.1%} by bricks), {document['plan']['base_bytes']:,} bytes of base "
        f"and {document['plan']['brick_bytes']:,} of bricks",
        markup=False,
    )
    if "blocks_per_token" in document:
        console.print(f"blocks {document['blocks_per_token']:.1f} per token of the answer")
    for part in document.get("trace", {}).get("bricks", []):
        console.print(f"trace {part['name']}: {part['gain']:+.3f} nats/token of the answer")
