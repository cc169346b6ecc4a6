"""``brickwork grow branches``: copies trained on domains, then averaged, asked or mixed."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from brickwork.cli.console import emit, progress
from brickwork.cli.options import OUT, model_options, output_options, written_flags

if TYPE_CHECKING:
    from brickwork.cli.branches_inputs import Domain
    from brickwork.model.load import LoadedModel
    from brickwork.model.parts import CausalModel

_COUNT = click.IntRange(min=1)
_POSITIVE = click.FloatRange(min=0, min_open=True)
# Options that only one way to join branches knows.
_OWN = {
    "average": (),
    "ensemble": ("top", "prior"),
    "mix": ("per_token", "tune", "tune_steps", "tune_rate", "balance"),
}


@click.command()
@click.argument("model")
@click.option(
    "--domain", "asked", multiple=True, required=True, metavar="NAME[=FILE]",
    help="Texts of a domain: JSONL (prompt and response), or .txt; without FILE, the functionality "
    "NAME of --data. At least two.",
)  # fmt: skip
@click.option(
    "--by", type=click.Choice(list(_OWN)), default="average",
    help="One model of their mean weights; all together, weighed by the text's domain; or a "
    "mixture with their FFNs as experts.",
)  # fmt: skip
@click.option("--data", help="Labelled instances (for `reference`: its own).")
@click.option("--mapping", help="How to read a data set: infinity-instruct, or a YAML file.")
@click.option("--instances", type=_COUNT, help="Instances of each functionality (default: all).")
@click.option("--steps", type=_COUNT, default=200, help="Batches that a branch is trained on.")
@click.option("--rate", type=_POSITIVE, default=3e-4, help="Learning rate of a branch at most.")
@click.option("--batch", type=_COUNT, default=2048, help="Padded tokens of a batch.")
@click.option(
    "--prompt-weight", type=click.FloatRange(min=0), default=0.3,
    help="Of a prompt's token in a branch's loss; at 0 an ensemble cannot tell domains by prompts.",
)  # fmt: skip
@click.option(
    "--evaluation", type=_COUNT, default=40,
    help="Texts of each domain that losses are measured on, at most a fifth of it.",
)  # fmt: skip
@click.option("--longest", type=_COUNT, default=512, help="Tokens after which a text is cut.")
@click.option("--top", type=_COUNT, help="For ensemble: likeliest domains that take part.")
@click.option(
    "--prior", type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="For ensemble: texts that the prior over domains is estimated on (default: uniform).",
)  # fmt: skip
@click.option("--per-token", type=click.IntRange(min=2), default=2,
              help="For mix: experts of a token.")  # fmt: skip
@click.option(
    "--tune", type=click.Choice(["routers", "everything"]), default="routers",
    help="For mix: what is trained after mixing.",
)  # fmt: skip
@click.option("--tune-steps", type=_COUNT, default=100, help="For mix: batches of that training.")
@click.option("--tune-rate", type=_POSITIVE, default=5e-3, help="For mix: its learning rate.")
@click.option(
    "--balance", type=click.FloatRange(min=0), default=0.01,
    help="For mix: weight of the loss on uneven use of experts.",
)  # fmt: skip
@click.option("--revision", help="Branch, tag or commit of MODEL on the Hub.")
@click.option("-o", "--out", type=OUT, required=True, help="Folder for branches and result.")
@click.option("--dry-run", is_flag=True, help="Say what would be done; write nothing.")
@model_options
@output_options
def branches(model: str, asked: tuple[str, ...], as_json: bool, **options: Any) -> None:
    """Train a copy of MODEL on each domain, join the copies, and measure all of them.

    MODEL is a folder, a Hub id, or `reference`. OUT/branches holds the copies; those that are there
    already are kept, so that a run that was stopped goes on, and the same branches can be joined in
    another way. The result is in OUT/average or OUT/mix, and what was measured in OUT/average.json,
    OUT/ensemble.json or OUT/mix.json.

    \b
    Examples:
      brickwork grow branches reference --domain Math --domain Coding -o forest --dry-run
      brickwork grow branches ./base --domain law=law.jsonl --domain med=med.txt --by mix -o forest
    """
    from brickwork.brick.durable import require_free
    from brickwork.cli.branches_cost import costs
    from brickwork.cli.branches_inputs import read_domains
    from brickwork.cli.branches_view import render
    from brickwork.cli.inputs import open_model
    from brickwork.errors import ModelError

    _require_sense(options, len(asked))
    dry_run, out = options["dry_run"], options["out"]
    if options["by"] == "mix":
        require_free(out / "mix", "a model", ModelError)
    options |= _number_format(model, options)
    outline = open_model(model, options, outline=True, tokenizer=True)
    domains = read_domains(outline, asked, model, options)
    document = {"out": str(out), "by": options["by"], "model": outline.name}
    document |= {"domains": {name: _described(domain) for name, domain in domains.items()}}
    document |= {"cost": costs(outline.model, model, len(domains), options)}
    if not dry_run:
        loaded = open_model(model, options)
        document |= {"base": losses(loaded.model, domains)}
        folders = _trained(loaded, domains, options)
        document |= _JOINS[options["by"]](loaded, folders, domains, options)
        _write(document, out / f"{options['by']}.json")
    emit(document, as_json, lambda console: render(console, document))


def losses(model: "CausalModel", domains: "Mapping[str, Domain]") -> dict[str, float]:
    """Nats per token of the response, in each domain."""
    from brickwork.measure.perplexity import response_losses

    every = [(name, text) for name, domain in domains.items() for text in domain.measured]
    found = response_losses(model, [text for _, text in every], [name for name, _ in every])
    return {name: found[name] for name in domains}


def _require_sense(options: Mapping[str, Any], count: int) -> None:
    from brickwork.errors import ConfigurationError

    by = options["by"]
    others = [name for way, names in _OWN.items() if way != by for name in names]
    if idle := written_flags(others):
        raise ConfigurationError(f"{idle[0]} has no effect on --by {by}; leave it out.")
    for name, most in (("top", options["top"]), ("per_token", options["per_token"])):
        if name in _OWN[by] and most is not None and most > count:
            raise ConfigurationError(
                f"--{name.replace('_', '-')} {most} of {count} domains was asked for; choose "
                f"{count} at most, or give more domains."
            )


def _number_format(model: str, options: Mapping[str, Any]) -> dict[str, str]:
    """The packaged weights are small, and a CPU computes in float32 faster than in bfloat16."""
    small = model == "reference" and options["dtype"] == "auto"
    return {"dtype": "float32"} if small else {}


def _described(domain: "Domain") -> dict[str, Any]:
    return {
        "source": domain.source,
        "train": len(domain.train),
        "train_tokens": sum(len(text.ids) for text in domain.train),
        "measured": len(domain.measured),
    }


def _trained(
    loaded: "LoadedModel", domains: "Mapping[str, Domain]", options: Mapping[str, Any]
) -> dict[str, Path]:
    from brickwork.grow.branches import train_branches
    from brickwork.model.fit import FitRecipe

    recipe = FitRecipe(
        options["rate"], options["steps"], options["batch"], seed=options["seed"],
        prompt_weight=options["prompt_weight"],
    )  # fmt: skip
    with progress("training branches", options["steps"] * len(domains)) as advance:
        return train_branches(
            loaded, {name: domain.train for name, domain in domains.items()},
            options["out"] / "branches", recipe, report=lambda *_step: advance(1),
        )  # fmt: skip


def _each(
    folders: Mapping[str, Path], domains: "Mapping[str, Domain]", options: Mapping[str, Any]
) -> dict[str, dict[str, float]]:
    """The losses of every branch, one loaded after the other."""
    from brickwork.model.load import load_model

    found = {}
    with progress("measuring branches", len(folders)) as advance:
        for name, folder in folders.items():
            found[name] = losses(load_model(str(folder), device=options["device"]).model, domains)
            advance(1)
    return found


def _average(
    _loaded: "LoadedModel",
    folders: Mapping[str, Path],
    domains: "Mapping[str, Domain]",
    options: Mapping[str, Any],
) -> dict[str, Any]:
    from brickwork.cli.branches_join import average_branches
    from brickwork.model.load import load_model

    place = options["out"] / "average"
    average_branches(folders, place)
    found = losses(load_model(str(place), device=options["device"]).model, domains)
    return {"branches": _each(folders, domains, options), "joined": {"average": found}}


def _ensemble(
    loaded: "LoadedModel",
    folders: Mapping[str, Path],
    domains: "Mapping[str, Domain]",
    options: Mapping[str, Any],
) -> dict[str, Any]:
    from brickwork.cli.branches_ensemble import measure_ensemble

    return measure_ensemble(loaded, folders, domains, options)


def _mix(
    loaded: "LoadedModel",
    folders: Mapping[str, Path],
    domains: "Mapping[str, Domain]",
    options: Mapping[str, Any],
) -> dict[str, Any]:
    from brickwork.cli.branches_join import mix_branches, tune_mix, write_mix
    from brickwork.grow.mix_tune import expert_weights

    found = _average(loaded, folders, domains, options)
    place = options["out"] / "mix"
    mix = mix_branches(folders, options["out"] / "average", place, options)
    untuned = losses(mix.model, domains)
    tune_mix(mix, domains, options)
    joined = {"mix before tuning": untuned, "mix": losses(mix.model, domains)}
    routing = {}
    for name, domain in domains.items():
        weights = expert_weights(mix.model, domain.measured).mean(0).tolist()
        routing[name] = dict(zip(folders, weights, strict=True))
    write_mix(mix, folders, place, options)
    return found | {"joined": found["joined"] | joined, "routing": routing}


_JOINS: Mapping[str, Callable[..., dict[str, Any]]] = {
    "average": _average, "ensemble": _ensemble, "mix": _mix,
}  # fmt: skip


def _write(document: Mapping[str, Any], path: Path) -> None:
    """What was measured, but for where it lies on this machine."""
    from brickwork.brick.durable import write_file
    from brickwork.brick.files import json_bytes

    kept = {key: value for key, value in document.items() if key != "out"}
    write_file(path, json_bytes(path.name, kept))
