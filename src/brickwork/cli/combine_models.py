"""``brickwork combine`` on a recipe for whole models."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from brickwork.cli.console import emit, progress

if TYPE_CHECKING:
    from brickwork.brick.brick import Brick
    from brickwork.combine.engine import Extras, MergeSummary
    from brickwork.combine.plan import MergePlan, ModelRef
    from brickwork.combine.recipe import Recipe
    from brickwork.combine.sources import Sources
    from brickwork.model.load import LoadedModel


def combine_models(
    document: dict[str, Any], where: Path, out: Path, as_json: bool, options: dict[str, Any]
) -> None:
    """Plan the merge, carry it out, and say what was done.

    Args:
        document: the recipe, as it was read.
        where: its file, for errors.
        out: folder for the result.
        as_json: whether to print JSON.
        options: those of the command.
    """
    from brickwork.brick.durable import require_free
    from brickwork.cli.combine_view import render
    from brickwork.combine.recipe import parse_recipe
    from brickwork.errors import MergeError

    require_free(out, "a model", MergeError)
    recipe = parse_recipe(document, str(where))
    if options["seed"] is not None:
        recipe = recipe.model_copy(update={"seed": options["seed"]})
    plan, extras = _planned(recipe, document, options["store"])
    said = {"out": str(out)}
    method, base = recipe.merge_method, recipe.base_model
    said |= carry_out(plan, extras, out, base=base, method=method, options=options)
    emit(said, as_json, lambda console: render(console, said, options["dry_run"]))


def carry_out(
    plan: "MergePlan",
    extras: "Extras",
    out: Path,
    *,
    base: "ModelRef | None",
    method: str,
    options: Mapping[str, Any],
) -> dict[str, Any]:
    """Describe the plan and, but for a dry run, write the merge and measure it."""
    from brickwork.cli.combine_view import describe_plan
    from brickwork.combine.engine import write_merge
    from brickwork.combine.sources import Sources

    sources = Sources(plan, extras)
    said = describe_plan(plan, sources, options["workers"])
    judge = _judge_of(plan, sources, out, base=base, method=method, options=options)
    if not options["dry_run"]:
        with progress("merge", said["bytes_to_write"]) as advance:
            summary = write_merge(
                plan, out, extras=extras, sources=sources, workers=options["workers"],
                shard_bytes=options["shard_size"], advance=advance,
            )  # fmt: skip
        said |= _what_was_done(summary, said["bytes_to_read"])
        said |= judge()
    return said


def _planned(
    recipe: "Recipe", document: Mapping[str, Any], store: Path | None
) -> "tuple[MergePlan, Extras]":
    from brickwork.combine.planner import plan_merge
    from brickwork.combine.sources import Extras

    plan = plan_merge(recipe, fetch_model)
    rearranged, files = None, {}
    record = {"recipe": _without_places(document, plan)}
    if recipe.vocabulary is not None:
        from brickwork.combine.vocabulary import plan_vocabulary, with_vocabulary

        vocabulary = plan_vocabulary(
            recipe.vocabulary, plan.folders, base=recipe.base_model, fetch=_fetch_tokenizer
        )
        plan = with_vocabulary(plan, vocabulary)
        rearranged, files = vocabulary.rearranged, dict(vocabulary.files)
        record |= vocabulary.record
    if recipe.chat_template is not None:
        files = _templated(recipe.chat_template, plan, files)
    return plan, Extras(
        rearranged=rearranged, files=files, adapters=adapters_of(plan, store), record=record
    )


def adapters_of(plan: "MergePlan", store: Path | None) -> "dict[ModelRef, Path]":
    """Folders of the LoRAs that are named as bricks of a store are."""
    from brickwork.cli.brick_inputs import BrickSource

    named = [
        ref
        for ref in plan.folders
        if ref.lora and "/" not in ref.lora and not Path(ref.lora).expanduser().is_dir()
    ]
    return {
        ref: BrickSource(store, ref.model).folder(
            ref.lora + (f"@{ref.lora_revision}" if ref.lora_revision else "")
        )
        for ref in named
    }


def _templated(wanted: str, plan: "MergePlan", files: dict[str, bytes]) -> dict[str, bytes]:
    from brickwork.combine.chat_template import choose_template, with_template
    from brickwork.combine.tokenizer_file import tokenizer_files

    template = choose_template(wanted, plan.folders)
    return files if template is None else with_template(
        files or tokenizer_files(plan.folders[plan.donor]), template
    )  # fmt: skip


def fetch_model(ref: "ModelRef", *, weights: bool = True) -> Path:
    """The folder of a model's checkpoint, fetched if it is on the Hub."""
    from brickwork.model.checkpoint import find_checkpoint
    from brickwork.reference.paths import resolve_model

    return find_checkpoint(resolve_model(ref.model), ref.revision, weights=weights)


def _fetch_tokenizer(ref: "ModelRef") -> Path:
    return fetch_model(ref, weights=False)


def _without_places(document: Any, plan: "MergePlan") -> Any:
    """The recipe with the names of local folders instead of their paths on this machine."""
    from brickwork.combine.plan import ModelRef
    from brickwork.combine.small_files import model_name

    names = {str(ref): model_name(ref, folder) for ref, folder in plan.folders.items()}
    names |= {r.model: model_name(ModelRef(r.model), path) for r, path in plan.folders.items()}

    def walk(node: Any) -> Any:
        if isinstance(node, dict):
            return {walk(key): walk(value) for key, value in node.items()}
        if isinstance(node, list):
            return [walk(value) for value in node]
        return names.get(node, _last(node)) if isinstance(node, str) else node

    return walk(document)


def _last(text: str) -> str:
    """The last part of an absolute path; any other text as it is."""
    path = Path(text)
    return path.name if path.is_absolute() else text


def _what_was_done(summary: "MergeSummary", bytes_read: int) -> dict[str, Any]:
    """The summary in numbers for people."""
    moved = bytes_read + summary.bytes
    return {
        "seconds": round(summary.seconds, 3),
        "megabytes_per_second": round(moved / 1e6 / max(summary.seconds, 1e-9), 1),
        "files": summary.files,
        "resumed_tensors": summary.resumed,
        "workers": summary.workers,
    }


def _judge_of(
    plan: "MergePlan",
    sources: "Sources",
    out: Path,
    *,
    base: "ModelRef | None",
    method: str,
    options: Mapping[str, Any],
) -> "Callable[[], dict[str, Any]]":
    """What finds the losses of base, parents and result; the data is read at once."""
    if options["data"] is None:
        return dict
    from brickwork.cli.combine_evaluate import Contender, judged, model_losses, read_evaluation
    from brickwork.combine.small_files import model_name
    from brickwork.model.load import load_model

    settings = {**options, "seed": plan.seed}
    instances, adapters = read_evaluation(settings), sources.adapters

    def contender(name: str, folder: Path, role: Any, ref: "ModelRef | None" = None) -> Contender:
        def losses() -> dict[str, float]:
            loaded = load_model(str(folder))
            bricks = [_lora(ref, adapters[ref], loaded)] if ref in adapters else []
            return model_losses(loaded, instances, longest=options["longest"], bricks=bricks)

        return Contender(name, role, losses)

    parents = [
        contender(name, folder, "base" if ref == base else "parent", ref)
        for ref, folder in plan.folders.items()
        for name in [model_name(ref, folder)]
    ]

    def judge() -> dict[str, Any]:
        contenders = [*parents, contender(out.name, out, "child")]
        return judged(contenders, instances, method=method, options=settings)

    return judge


def _lora(ref: "ModelRef", adapter: Path, loaded: "LoadedModel") -> "Brick":
    from brickwork.combine.lora_source import read_lora

    return read_lora(ref.lora, adapter, loaded.base)
