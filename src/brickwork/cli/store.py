"""``brickwork store``: keep bricks, find them again, move them between stores."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from rich.console import Console
from rich.filesize import decimal

from brickwork.cli.console import emit, progress
from brickwork.cli.options import output_options
from brickwork.cli.store_view import facts, plain, show_entries, show_plan, table

if TYPE_CHECKING:
    from brickwork.brick.base import Base
    from brickwork.brick.brick import Brick
    from brickwork.store.entry import Entry
    from brickwork.store.store import Store

Command = TypeVar("Command", bound=Callable[..., Any])


def store_options(command: Command) -> Command:
    """Give a command ``folder`` (``--store``), and the options of its output."""
    where = click.option(
        "--store",
        "folder",
        type=click.Path(path_type=Path),
        help="The store's folder.  [default: $BRICKWORK_HOME/store, or your data folder]",
    )
    return where(output_options(command))


@click.group()
def store() -> None:
    """Keep bricks: add, find, verify, move.

    \b
    A brick is named  fr-en              its latest version
                      fr-en@2            one version, always the same content
                      sha256:1f3a09c2    its content, by 8 digits or more
    """


@store.command()
@click.argument(
    "paths",
    nargs=-1,
    required=True,
    metavar="PATH...",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
)
@click.option("--base", metavar="MODEL", help="The base of a PEFT adapter folder.")
@click.option("--name", help="Name of the brick, if PATH is one.  [default: its own]")
@click.option("--function", metavar="TEXT", help="What the brick is for, in words.")
@click.option("--label", "labels", multiple=True, help="A functionality, such as Translation.")
@click.option("--exemplar", "exemplars", multiple=True, help="An instruction it is meant for.")
@click.option(
    "--exemplars",
    "exemplar_file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A text file with one exemplar per line.",
)
@click.option("--tag", "tags", multiple=True, help="A tag of your own.")
@click.option("--licence", help="The licence it may be used under.")
@click.option("--dry-run", is_flag=True, help="Say what would be added, and add nothing.")
@store_options
def add(
    paths: tuple[Path, ...],
    base: str | None,
    tags: tuple[str, ...],
    dry_run: bool,
    folder: Path | None,
    as_json: bool,
    **words: Any,
) -> None:
    """Add bricks from their folders.

    A PEFT adapter folder needs its --base; a folder that Brickwork wrote knows it. All are read
    and checked before the first is added. What is said of them here takes the place of what they
    say of themselves.
    """
    if words["name"] and len(paths) > 1:
        raise click.UsageError("--name names one brick; add one PATH at a time with it.")
    changes = _changes(**words)
    model = _load_base(base) if base else None
    bricks = [_read(path, model, changes) for path in paths]
    if dry_run:
        show_plan(bricks, _known(folder), as_json)
        return
    with _open(folder, create=True) as opened, progress("adding", len(bricks)) as advance:
        kept = []
        for brick in bricks:
            kept.append(opened.add(brick, tags=tags))
            advance(1)
    show_entries(kept, as_json, "Added")


@store.command("list")
@click.option("--form", help="Only bricks of this form.")
@click.option("--tag", help="Only bricks with this tag.")
@click.option("--label", help="Only bricks with this label of functionality.")
@click.option("--base", help="Only bricks for the base of this name, or weights' hash.")
@click.option("--removed", is_flag=True, help="Removed bricks too.")
@store_options
def list_(folder: Path | None, as_json: bool, removed: bool, **conditions: Any) -> None:
    """List the bricks, by name and version."""
    with _open(folder) as opened:
        found = opened.list(deleted=removed, **conditions)
    show_entries(found, as_json, "No brick is there that fits." if not found else "")


@store.command()
@click.argument("reference")
@store_options
def show(reference: str, folder: Path | None, as_json: bool) -> None:
    """Show all that is known of one brick."""
    with _open(folder) as opened:
        family, path = opened.lineage(reference), opened.path(reference)
    entry = family.entry
    document = {
        **entry.document(),
        "path": str(path),
        "spec": entry.spec.model_dump(mode="json"),
        "ancestors": [parent.reference for parent in family.ancestors],
        "children": [child.reference for child in family.children],
        "missing_parents": list(family.missing),
    }
    emit(document, as_json, lambda console: console.print(facts(document)))


@store.command()
@click.argument("text", nargs=-1, required=True)
@click.option("--limit", type=click.IntRange(min=1), default=10, help="How many at most.")
@store_options
def search(text: tuple[str, ...], limit: int, folder: Path | None, as_json: bool) -> None:
    """Find bricks by words.

    The words are looked for in name, function, labels, tags and exemplars of each brick's latest
    version.
    """
    with _open(folder) as opened:
        hits = opened.search(" ".join(text), limit)
    entries, scores = [entry for entry, _ in hits], [score for _, score in hits]
    document = {"bricks": [{"score": score, **entry.document()} for entry, score in hits]}
    drawing = table(entries, scores) if hits else "Nothing found."
    emit(document, as_json, lambda console: console.print(drawing))


@store.command()
@store_options
def verify(folder: Path | None, as_json: bool) -> None:
    """Compare every brick with its hash and the catalog.

    The exit code is 1 if something is wrong.
    """
    with _open(folder) as opened:
        count = len(opened.list(deleted=True))
        with progress("verifying", count) as advance:
            problems = opened.verify(advance)

    def render(console: Console) -> None:
        for problem in problems:
            console.print(plain(f"- {problem}"))
        console.print(f"{count} bricks, {len(problems)} problems.")

    emit({"bricks": count, "problems": problems}, as_json, render)
    if problems:
        click.get_current_context().exit(1)


@store.command()
@click.argument("references", nargs=-1, required=True, metavar="REFERENCE...")
@store_options
def remove(references: tuple[str, ...], folder: Path | None, as_json: bool) -> None:
    """Remove bricks; until gc they can be restored."""
    with _open(folder) as opened:
        chosen = dict.fromkeys(opened.entry(reference).reference for reference in references)
        removed = [opened.remove(reference) for reference in chosen]
    show_entries(removed, as_json, "Removed; undo with brickwork store restore")


@store.command()
@click.argument("references", nargs=-1, required=True, metavar="REFERENCE...")
@store_options
def restore(references: tuple[str, ...], folder: Path | None, as_json: bool) -> None:
    """Bring removed bricks back.

    A bare name means its latest removed version.
    """
    with _open(folder) as opened:
        restored = [opened.restore(reference) for reference in references]
    show_entries(restored, as_json, "Restored")


@store.command()
@click.argument("reference")
@click.argument("tags", nargs=-1, required=True, metavar="TAG...")
@click.option("--remove", "take_away", is_flag=True, help="Take the tags away.")
@store_options
def tag(
    reference: str, tags: tuple[str, ...], take_away: bool, folder: Path | None, as_json: bool
) -> None:
    """Give a brick tags, or take them away."""
    with _open(folder) as opened:
        exact = opened.entry(reference).reference
        change = opened.untag if take_away else opened.tag
        entry = [change(exact, tag) for tag in tags][-1]
    show_entries([entry], as_json, "Now")


@store.command()
@click.argument("references", nargs=-1, required=True, metavar="REFERENCE...")
@click.option(
    "-o", "--output", type=click.Path(dir_okay=False, path_type=Path), required=True, help="File."
)
@click.option("--force", is_flag=True, help="Replace the file if it is there.")
@store_options
def export(
    references: tuple[str, ...], output: Path, force: bool, folder: Path | None, as_json: bool
) -> None:
    """Write bricks to one file, for import elsewhere."""
    if output.exists() and not force:
        raise click.UsageError(f"{output} exists; choose another file, or replace it by --force.")
    with _open(folder) as opened:
        entries = opened.export(references, output)
    show_entries(entries, as_json, f"Exported to {output} ({decimal(output.stat().st_size)})")


@store.command("import")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--limit", type=click.IntRange(min=0), help="Most bytes to read.  [default: 16 GiB]")
@store_options
def import_(file: Path, limit: int | None, folder: Path | None, as_json: bool) -> None:
    """Add all bricks of an exported file, or none.

    Nothing in the file is trusted: each brick is verified first.
    """
    limits = {} if limit is None else {"limit": limit}
    with _open(folder, create=True) as opened:
        entries = opened.import_archive(file, **limits)
    show_entries(entries, as_json, "Imported")


@store.command()
@click.option(
    "--older-than",
    type=click.FloatRange(min=0),
    default=3600,
    metavar="SECONDS",
    help="Leave alone what was removed, or left behind, later than that.",
)
@click.option("--dry-run", is_flag=True, help="Say what would be deleted, and delete nothing.")
@store_options
def gc(older_than: float, dry_run: bool, folder: Path | None, as_json: bool) -> None:
    """Delete removed bricks and leftovers for good.

    Leftovers are what interrupted commands left in the store.
    """
    with _open(folder) as opened:
        done = opened.collect(older_than, dry_run=dry_run)
    document = {
        "bricks": list(done.bricks),
        "strays": done.strays,
        "bytes": done.bytes,
        "dry_run": dry_run,
    }
    sentence = (
        f"{'Would delete' if dry_run else 'Deleted'} {len(done.bricks)} bricks "
        f"({decimal(done.bytes)}) and {done.strays} leftovers."
    )
    emit(document, as_json, lambda console: console.print(sentence))


def _open(folder: Path | None, *, create: bool = False) -> "Store":
    from brickwork.store.store import Store, default_path

    return Store.open(folder or default_path(), create=create)


def _known(folder: Path | None) -> dict[str, "Entry"]:
    """The entries of the store by their hash; none where no store is yet."""
    from brickwork.store.store import Store, default_path

    path = folder or default_path()
    if not path.exists():
        return {}
    with Store.open(path, create=False) as opened:
        return {entry.hash: entry for entry in opened.list(deleted=True)}


def _load_base(model: str) -> "Base":
    from brickwork.model.load import load_model
    from brickwork.reference.paths import resolve_model

    target = resolve_model(model)
    return load_model(target, device="cpu", name="" if target == model else model).base


def _changes(
    name: str | None,
    function: str | None,
    labels: Sequence[str],
    exemplars: Sequence[str],
    exemplar_file: Path | None,
    licence: str | None,
) -> dict[str, Any]:
    """What the options say of the brick, as fields of its spec; absent where they say nothing."""
    lines = exemplar_file.read_text(encoding="utf-8").splitlines() if exemplar_file else []
    examples = [*exemplars, *(line.strip() for line in lines if line.strip())]
    words = {"text": function, "labels": list(labels) or None, "exemplars": examples or None}
    return {
        "function": {field: value for field, value in words.items() if value is not None},
        **({} if name is None else {"name": name}),
        **({} if licence is None else {"licence": licence}),
    }


def _read(path: Path, base: "Base | None", changes: dict[str, Any]) -> "Brick":
    """The brick of a folder with the changes made, checked against the base if one is given."""
    from brickwork.brick.brick import Brick
    from brickwork.brick.check import require_fit
    from brickwork.brick.folder import is_brick_folder, is_peft_folder, read_brick, read_peft
    from brickwork.brick.spec import parse_spec

    if is_brick_folder(path):
        brick = read_brick(path)
        if base is not None:
            require_fit(brick, base)
    elif not is_peft_folder(path):
        raise click.UsageError(f"{path} holds neither brick.json nor adapter_config.json.")
    elif base is None:
        raise click.UsageError(
            f"{path} is a PEFT adapter, which does not say what its base is; add --base MODEL."
        )
    else:
        brick = read_peft(path, base, changes.get("name") or _name_of(path))
    document = brick.spec.model_dump(mode="json")
    function = {**document["function"], **changes["function"]}
    spec = parse_spec({**document, **changes, "function": function}, "what the options say")
    return Brick(spec, brick.tensors)


def _name_of(path: Path) -> str:
    name = re.sub(r"[^a-z0-9._-]+", "-", path.resolve().name.lower())[:80].strip("-._")
    if not name:
        raise click.UsageError(f"{path} gives the brick no name; add --name.")
    return name
