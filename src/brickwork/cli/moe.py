"""``brickwork moe``: a partitioned dense model as a mixture-of-experts checkpoint."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from brickwork.cli.console import emit, progress, stderr_console
from brickwork.cli.inputs import open_model, read_labelled
from brickwork.cli.options import OUT, model_options, output_options

if TYPE_CHECKING:
    from rich.console import Console
    from torch import Tensor

    from brickwork.brick.partition import Partition
    from brickwork.build.moe import MoePlan
    from brickwork.model.load import LoadedModel
    from brickwork.model.parts import CausalModel
    from brickwork.model.train import Encoded

_COUNT = click.IntRange(min=1)
_FOLDER = click.Path(path_type=Path, file_okay=False)


@click.command()
@click.argument("model")
@click.option("--partition", type=_FOLDER, required=True, help="Folder of the partition.")
@click.option("-o", "--out", type=OUT, required=True, help="Folder for the checkpoint; new.")
@click.option("--target", help="Family to write (default: the first that fits the model).")
@click.option("--top-k", type=_COUNT, help="Experts for each token (default: all).")
@click.option("--router", type=_FOLDER, help="A linear router brick (default: centroids).")
@click.option("--data", help="Labelled instances to measure on: JSONL, a Hub id, or `reference`.")
@click.option("--mapping", help="How to read a data set: infinity-instruct, or a YAML file.")
@click.option("--instances", type=_COUNT, help="Instances of each functionality (default: all).")
@click.option(
    "--evaluation", type=_COUNT,
    help="Instances of each functionality that losses are measured on, at most "
    "(default: a fifteenth, no more than 40).",
)  # fmt: skip
@click.option("--longest", type=_COUNT, default=512, help="Tokens after which a text is cut.")
@click.option("--tune-steps", type=_COUNT, help="Train the routers for so many batches.")
@click.option("--tune-experts", is_flag=True, help="Train the experts with them.")
@click.option("--revision", help="Branch, tag or commit of MODEL on the Hub.")
@click.option("--dry-run", is_flag=True, help="Say what will be written; write nothing.")
@model_options
@output_options
def moe(model: str, partition: Path, out: Path, as_json: bool, **options: Any) -> None:
    """Write the dense MODEL as a mixture of experts, its groups of neurons as experts.

    MODEL is a folder, a Hub id, or `reference`, the embedded model; so is the data `reference`
    its probe set. With all experts the checkpoint says what MODEL says; with fewer, what MODEL says
    with the neurons of the other groups silent.

    \b
    Examples:
      brickwork moe reference --partition groups -o mixture --dry-run
      brickwork moe reference --partition groups -o mixture --top-k 8 --data reference
      brickwork moe reference --partition groups -o mixture --top-k 4 --data reference \\
        --tune-steps 200 --dtype float32
    """  # fmt: skip
    from brickwork.errors import ConfigurationError

    if (options["tune_steps"] or options["tune_experts"]) and not (
        options["tune_steps"] and options["data"]
    ):
        raise ConfigurationError(
            "training needs --tune-steps and --data, and one of them is missing; give both."
        )
    document = mixture_document(model, partition, out, options)
    emit(document, as_json, lambda console: render(console, document, options["dry_run"]))


def mixture_document(
    model: str, partition: Path, out: Path | None, options: dict[str, Any]
) -> dict[str, Any]:
    """Write the mixture, but for a dry run, and tell of it.

    Args:
        model: as it was written.
        partition: folder of the partition.
        out: folder for the checkpoint; None only in a dry run.
        options: those of the command.
    """
    from brickwork.brick.partition import read_partition
    from brickwork.build.moe import plan_moe

    groups = read_partition(partition)
    loaded = open_model(model, options, outline=options["dry_run"])
    plan = plan_moe(loaded, groups, target=options["target"], top_k=options["top_k"])
    document = _description(loaded, plan, out) | {"router": _router_name(options)}
    if not options["dry_run"]:
        assert out is not None, "where to write"
        document |= _written(loaded, groups, plan, out, options)
    return document


def _router_name(options: dict[str, Any]) -> str:
    return options["router"].resolve().name if options["router"] else "centroids"


def _description(loaded: "LoadedModel", plan: "MoePlan", out: Path | None) -> dict[str, Any]:
    target, sizes = plan.target, plan.sizes
    limits = target.server(loaded.model.config)
    return {
        "out": None if out is None else str(out),
        "model": loaded.name,
        "target": target.model_type,
        "routing": target.routing,
        "any_top_k": target.any_top_k,
        "experts": sizes.experts,
        "neurons_per_expert": sizes.width,
        "shared_neurons": sizes.shared,
        "zero_neurons": target.shared_width(sizes) - sizes.shared,
        "top_k": sizes.top_k,
        "parameters": plan.parameters,
        "active_parameters": plan.active,
        "dense_parameters": sum(p.numel() for p in loaded.model.parameters()),
        "servers": {"transformers": [], "vllm": limits},
        "losses": {},
        "measured_on": 0,
    }


def _written(
    loaded: "LoadedModel", groups: "Partition", plan: "MoePlan", out: Path, options: dict[str, Any]
) -> dict[str, Any]:
    """Export, measure, train if asked for, and write; what was measured."""
    from brickwork.brick.durable import require_free
    from brickwork.build.moe import export_moe
    from brickwork.errors import ModelError
    from brickwork.model.export import write_checkpoint

    require_free(out, "a model", ModelError)
    seed, target = options["seed"], plan.target.model_type
    training, held_out = _instances(loaded, options) if options["data"] else ([], [])
    routers = _routers(loaded, groups, options["router"])
    losses: dict[str, float] = {}
    if held_out:
        losses["dense"] = _loss(loaded.model, held_out)
        whole = export_moe(loaded, groups, target=target, routers=routers)
        losses["all_experts"] = _loss(whole, held_out)
        del whole
    mixture = export_moe(loaded, groups, target=target, top_k=plan.sizes.top_k, routers=routers)
    if held_out:
        losses["top_k"] = _loss(mixture, held_out)
    if options["tune_steps"]:
        _tune(mixture, training, options["tune_steps"], options["tune_experts"], seed)
        losses["top_k_tuned"] = _loss(mixture, held_out)
    record = {
        "operation": "moe",
        "base": loaded.base.fingerprint.model_dump(mode="json"),
        "partition": groups.hash,
        "target": target,
        "top_k": plan.sizes.top_k,
        "losses": losses,
    }
    write_checkpoint(mixture, out, tokenizer=loaded.tokenizer, record=record)
    return {"losses": losses, "measured_on": len(held_out)}


def _routers(
    loaded: "LoadedModel", groups: "Partition", folder: Path | None
) -> "dict[int, Tensor] | None":
    from brickwork.brick.check import require_fit
    from brickwork.brick.folder import read_brick
    from brickwork.build.moe_routers import brick_routers

    if folder is None:
        return None
    brick = read_brick(folder)
    require_fit(brick, loaded.base)
    return brick_routers(brick, loaded.model, groups)


def _instances(
    loaded: "LoadedModel", options: dict[str, Any]
) -> "tuple[list[Encoded], list[Encoded]]":
    """Sequences to train on, and those that losses are measured on."""
    from brickwork.measure.instances import default_evaluation, encode_instances, split_instances

    seed = options["seed"]
    found = read_labelled(options["data"], options)
    evaluation = options["evaluation"] or default_evaluation(found)
    split = split_instances(found, evaluation=evaluation, seed=seed)
    encoded = encode_instances(loaded, found, options["longest"])
    if encoded.left_out:
        stderr_console().print(f"{encoded.left_out} instances are too long or empty", markup=False)
    training, held_out = (
        [sequence for i in chosen if (sequence := encoded.sequences[i]) is not None]
        for chosen in (split.localisation, split.evaluation)
    )
    return training, held_out


def _loss(model: "CausalModel", sequences: "list[Encoded]") -> float:
    """Nats for each token of the responses."""
    from brickwork.measure.perplexity import instance_losses

    with progress("measure", len(sequences)) as advance:
        found = instance_losses(model, sequences, advance=advance)
    return float(found.response.sum() / found.response_tokens.sum())


def _tune(
    mixture: "CausalModel", training: "list[Encoded]", steps: int, experts: bool, seed: int
) -> None:
    import torch

    from brickwork.build.moe_tune import EXPERT_RATE, MoeRecipe, tune_moe

    recipe = MoeRecipe(steps=steps, expert_rate=EXPERT_RATE if experts else 0.0)
    generator = torch.Generator().manual_seed(seed)
    with progress("train", steps) as advance:
        tune_moe(
            mixture, training, recipe, generator=generator,
            report=lambda _step, _loss, _balance: advance(1),
        )  # fmt: skip


_LOSS_WORDS = {
    "dense": "dense model",
    "all_experts": "all experts",
    "top_k": "{top_k} of {experts} experts",
    "top_k_tuned": "{top_k} of {experts} experts, trained",
}


def render(console: "Console", document: dict[str, Any], dry_run: bool) -> None:
    """The same for a person."""
    from rich.table import Table

    say = document.get
    limits = "; ".join(document["servers"]["vllm"])
    table = Table(show_header=False)
    table.add_row("family", f"{say('target')} ({say('routing')})")
    shared = f", {say('shared_neurons')} shared" if say("shared_neurons") else ""
    if say("zero_neurons"):
        shared = f", and {say('zero_neurons')} shared neurons of zeros, which the family asks for"
    table.add_row("experts", f"{say('experts')} of {say('neurons_per_expert')} neurons{shared}")
    advice = "" if say("any_top_k") else "; another number changes what the experts weigh"
    table.add_row("for each token", f"{say('top_k')}, by {say('router')}{advice}")
    table.add_row(
        "parameters",
        f"{say('parameters'):,}, {say('active_parameters'):,} of them for a token "
        f"(dense: {say('dense_parameters'):,})",
    )
    listed = "transformers; vLLM lists the family"
    table.add_row("loads in", listed + (f", but: {limits}" if limits else ""))
    for name, loss in document["losses"].items():
        table.add_row(f"loss, {_LOSS_WORDS[name].format(**document)}", f"{loss:.4f}")
    if document["losses"]:
        table.add_row(
            "losses are of", f"{say('measured_on')} instances, in nats per response token"
        )
    console.print(table)
    word = "checkpoint, not written (dry run)" if dry_run else "checkpoint"
    console.print(f"{word}: {say('out') or '-'}", markup=False, soft_wrap=True)
