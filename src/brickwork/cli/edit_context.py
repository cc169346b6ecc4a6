"""Where an edit is made, and with what: the site, statistics, texts and training facts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from brickwork.cli.console import progress, stderr_console

if TYPE_CHECKING:
    from brickwork.model.load import LoadedModel
    from brickwork.model.train import Encoded
    from brickwork.update.covariance import Covariances
    from brickwork.update.edit import StatisticsUsed
    from brickwork.update.ledger import Ledger
    from brickwork.update.method import EditContext, EditMethod, EditSite
    from brickwork.update.plan import Asked
    from brickwork.update.sequence import Serving
    from brickwork.update.words import EncodedFact


@dataclass(frozen=True, eq=False)
class Job:
    """What a command was given.

    Attributes:
        loaded: the model.
        model: as it was named.
        method: how to edit.
        ledger: where edits are kept; None: there is none yet, and it is a dry run.
        options: those of the command, ``settings`` parsed.
    """

    loaded: "LoadedModel"
    model: str
    method: "EditMethod"
    ledger: "Ledger | None"
    options: Mapping[str, Any]


@dataclass(frozen=True)
class Place:
    """Where to edit, whether causal tracing found it, and what is worth knowing of that."""

    site: "EditSite"
    located: bool
    note: str = ""

    def as_document(self) -> dict[str, Any]:
        """As a command prints it."""
        return {"site": str(self.site), "located": self.located, "note": self.note}


def find_place(job: Job, facts: "Sequence[EncodedFact]", serving: "Serving") -> Place:
    """The site that was asked for, that of the method, or where tracing finds facts recalled."""
    from brickwork.cli.edit_inputs import parse_site
    from brickwork.errors import ConfigurationError
    from brickwork.model.parts import layers_of
    from brickwork.update.method import EditSite

    method, depth = job.method, layers_of(job.loaded.model)
    if job.options["site"]:
        site = parse_site(job.options["site"], job.loaded)
        if method.layers == 1 and len(site.layers) > 1:
            raise ConfigurationError(
                f"an edit by {method.name} is made in one layer, but {job.options['site']!r} names "
                f"{len(site.layers)}; name one, or take a method for several, such as memit."
            )
        return Place(site, located=False)
    if method.layers == 0:  # it looks for its own places in all of them
        return Place(EditSite(tuple(range(depth)), "last"), located=False)
    if method.depth is not None:
        last = method.last_layer(0, depth)
        layers = range(max(last + 1 - method.layers, 0), last + 1)
        return Place(EditSite(tuple(layers), "last"), located=False)
    from brickwork.update.sites import find_site

    acting = job.ledger.active() if job.ledger else []
    with serving([edit.brick for edit in acting]):
        found = find_site(job.loaded, facts, layers=method.layers, seed=job.options["seed"])
    return Place(found.site, located=True, note=found.note)


def plan_statistics(job: Job, place: Place) -> dict[str, Any]:
    """The bytes of the statistics that an edit at this place needs, and that are not there."""
    from brickwork.measure.merge_statistics import statistics_bytes
    from brickwork.update.covariance import open_covariance
    from brickwork.update.keys import edit_path

    if "covariance" not in job.method.needs:
        return {"statistics_bytes": 0}
    if job.options["statistics"] is not None:
        covariance, _ = open_covariance(job.options["statistics"], job.loaded)
        for layer in place.site.layers:
            covariance(layer)  # one that is missing is told now
        return {"statistics_bytes": 0}
    _require_data(job)
    paths = [edit_path(job.loaded.model, layer) for layer in place.site.layers]
    sites = [job.loaded.base.sites[path].address for path in paths]
    return {"statistics_bytes": statistics_bytes(job.loaded.model, "gram", sites)}


def prepare_context(job: Job, place: Place) -> "tuple[EditContext, Asked]":
    """What the method works with, and what each edit shall be; measures what is missing."""
    from brickwork.update.method import EditContext
    from brickwork.update.plan import Asked

    needs, options = job.method.needs, job.options
    covariance, used = _covariance(job, place) if "covariance" in needs else (None, None)
    if used is not None:
        _warn_of_few(job, place, used.tokens)
    corpus = _corpus(job)[0] if "corpus" in needs else ()
    context = EditContext(
        job.loaded, place.site, covariance=covariance, corpus=corpus, training=_training(job),
        raw=options["raw"], seed=options["seed"],
    )  # fmt: skip
    asked = Asked(
        job.method.name, options["settings"], located=place.located, statistics=used,
        name=f"edit-{job.method.name}",
    )  # fmt: skip
    return context, asked


def _covariance(job: Job, place: Place) -> "tuple[Covariances, StatisticsUsed]":
    """The covariances from the folder that was named, or measured once and kept at home."""
    from brickwork.cli.inputs import data_name
    from brickwork.store.store import default_path
    from brickwork.update.covariance import Corpus, measure_covariance, open_covariance

    options = job.options
    if options["statistics"] is not None:
        return open_covariance(options["statistics"], job.loaded)
    sequences, sha256 = _corpus(job)
    name = data_name(_require_data(job))
    corpus = Corpus(sequences, name, sha256, options["tokens"], options["seed"])
    home = default_path().parent / "statistics"
    with progress("measuring statistics") as advance:
        return measure_covariance(job.loaded, corpus, place.site.layers, home, advance=advance)


def _warn_of_few(job: Job, place: Place, tokens: int) -> None:
    """Say that statistics know less than the layer has neurons."""
    from brickwork.update.keys import edit_path

    paths = [edit_path(job.loaded.model, layer) for layer in place.site.layers]
    neurons = max(job.loaded.base.sites[path].sizes["in"] for path in paths)
    if tokens < neurons:
        stderr_console().print(
            f"Note: statistics of {tokens:,} tokens say little of {neurons:,} neurons, so that an "
            "edit may change more than it should; measure more texts.",
            style="yellow", markup=False, soft_wrap=True,
        )  # fmt: skip


def _corpus(job: Job) -> "tuple[list[Encoded], str]":
    from brickwork.cli.edit_inputs import read_corpus

    return read_corpus(job.loaded, _require_data(job), job.options)


def _require_data(job: Job) -> str:
    from brickwork.cli.edit_inputs import data_of
    from brickwork.errors import ConfigurationError

    data = data_of(job.model, job.options)
    if data is None:
        kept = ", or statistics with --statistics" if "covariance" in job.method.needs else ""
        raise ConfigurationError(
            f"an edit by {job.method.name} needs texts of the kind that the model reads, to leave "
            f"alone what they say, and none were named; name some with --data{kept}."
        )
    return data


def _training(job: Job) -> "list[EncodedFact]":
    from brickwork.update.fact_files import read_facts
    from brickwork.update.words import encode_fact

    options = job.options
    if options["train"] is None:
        return []
    facts = read_facts(options["train"], template=options["template"])
    return [encode_fact(job.loaded, fact, raw=options["raw"]) for fact in facts]
