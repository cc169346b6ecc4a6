"""Facts taught to the reference model by every method: what sticks, what is spared, what it takes.

    python -m benchmarks.edits --facts pararel_edits.json.gz [--count 200] [--others 100]
        [--methods rome-alone,rome,memit,...] [--alone 20] [--site layers.3@last] [--json FILE]

The file holds facts in the form of CounterFact, each with ``in_train``; those are taken that the
model was trained on and knows: asked "Complete the fact.\\n{prompt}" in its chat template, every
token of the old answer is the likeliest. ``--count`` of them are drawn and taught another answer,
``--others`` more must stay as they are, and 200 more are what SERAC learns its scope from. Facts
about the same subject come from those that it knows.

Each method has its defaults, and edits where causal tracing finds the facts recalled, or at
``--site``. ``rome-alone`` is one edit at a time, each measured on its own, for the first
``--alone`` facts (perplexities for the first five of them); ``rome`` is all of them, each planned
on top of the others. knowledge-neurons teach nothing: they make the old answer silent.
Covariances and texts come from the probe instances that perplexities are not of.

Seconds are of planning and keeping all edits, for each fact that was tried, without tracing and
covariances.
"""

import argparse
import json
import random
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from brickwork.cli.edit_inputs import parse_site
from brickwork.measure.instances import Instance, content_hash, encode_instances, split_instances
from brickwork.measure.records import read_records
from brickwork.measure.results import Interval
from brickwork.model.load import LoadedModel, load_model
from brickwork.model.parts import layers_of
from brickwork.model.train import Encoded
from brickwork.reference.paths import model_folder
from brickwork.reference.probe import probe_instances
from brickwork.runtime.configured import ConfiguredModel
from brickwork.update.answers import answer_scores
from brickwork.update.covariance import Corpus, measure_covariance
from brickwork.update.evaluate import Material, evaluate_edits
from brickwork.update.evaluation_results import GROUPS, EditEvaluation
from brickwork.update.fact_files import fact_of, wrapped
from brickwork.update.facts import Fact, Probe
from brickwork.update.ledger import Ledger
from brickwork.update.measures import score_interval, share_interval
from brickwork.update.method import EditContext, EditMethod, EditSite
from brickwork.update.methods import edit_methods, find_edit_method
from brickwork.update.plan import Asked
from brickwork.update.sequence import batches_of, prepare_facts, teach_facts
from brickwork.update.sites import find_site
from brickwork.update.words import encode_fact

TEMPLATE = "Complete the fact.\n{prompt}"
ALONE = "rome-alone"
TRAINING, LONGEST, EVALUATION, MEASURED_ALONE = 200, 256, 40, 5
BARS = {ALONE: 1.0, "memit": 60 / 200}  # seconds for each fact, at most


@dataclass(frozen=True)
class Facts:
    """Facts of the file: how many were asked, and those that the model knows, parted."""

    asked: int
    known: int
    drawn: list[Fact]
    others: list[Fact]
    training: list[Fact]


@dataclass(frozen=True)
class Made:
    """What teaching took and left."""

    serving: Callable[[], AbstractContextManager[None]]
    tried: int
    taught: int
    failures: dict[str, str]
    wall: float
    cpu: float


def read(loaded: LoadedModel, options: argparse.Namespace) -> Facts:
    """Draw from the facts that the model knows."""
    records = [record for _, record in read_records(options.facts) if record.get("in_train")]
    every: dict[tuple[str, str], Fact] = {}
    for record in records:
        fact = wrapped(fact_of(record), TEMPLATE)
        every.setdefault((fact.subject, fact.relation), fact)
    encoded = [encode_fact(loaded, fact) for fact in every.values()]
    said = answer_scores(loaded.model, [(one.prompt.ids, one.true) for one in encoded]).said
    known = [one.fact for one, knows in zip(encoded, said.tolist(), strict=True) if knows]
    random.Random(options.seed).shuffle(known)
    first, second = options.count, options.count + options.others
    drawn = [with_subject(fact, known) for fact in known[:first]]
    training = known[second : second + TRAINING]
    return Facts(len(every), len(known), drawn, known[first:second], training)


def with_subject(fact: Fact, known: Sequence[Fact]) -> Fact:
    """The fact with what else is known about its subject."""
    own = [k for k in known if k.subject == fact.subject and k.relation != fact.relation]
    return replace(fact, same_subject=tuple(Probe(k.prompt, k.target_true) for k in own))


class Bench:
    """The model with all that is measured on it."""

    def __init__(self, options: argparse.Namespace, home: Path) -> None:
        self.options, self.home = options, home
        self.loaded = load_model(
            str(model_folder()), device="cpu", dtype="float32", name="reference"
        )
        self.model = ConfiguredModel(self.loaded)
        self.facts = read(self.loaded, options)
        instances = probe_instances()
        split = split_instances(instances, evaluation=EVALUATION, seed=0)
        self.evaluation = self.by_name([instances[i] for i in split.evaluation])
        fitting = [instances[i] for i in split.localisation]
        own = self.by_name(fitting)
        self.texts = [sequence for group in own.values() for sequence in group]
        self.corpus = Corpus(self.texts, "probe", content_hash(fitting))
        self.encoded = [encode_fact(self.loaded, fact) for fact in self.facts.drawn]
        self.training = [encode_fact(self.loaded, fact) for fact in self.facts.training]

    def by_name(self, instances: Sequence[Instance]) -> dict[str, list[Encoded]]:
        found: dict[str, list[Encoded]] = {}
        encoded = encode_instances(self.loaded, instances, LONGEST).sequences
        for instance, sequence in zip(instances, encoded, strict=True):
            if sequence is not None:
                found.setdefault(instance.functionality, []).append(sequence)
        return dict(sorted(found.items()))

    def context(self, method: EditMethod) -> EditContext:
        site = self.site(method)
        covariance = None
        if "covariance" in method.needs:
            covariance = measure_covariance(self.loaded, self.corpus, site.layers, self.home)[0]
        return EditContext(
            self.loaded, site, covariance=covariance, corpus=self.texts, training=self.training,
            seed=self.options.seed,
        )  # fmt: skip

    def site(self, method: EditMethod) -> EditSite:
        depth = layers_of(self.loaded.model)
        if not method.layers:
            return EditSite(tuple(range(depth)), "last")
        if method.depth is not None:
            last = method.last_layer(0, depth)
            return EditSite(tuple(range(max(last + 1 - method.layers, 0), last + 1)), "last")
        if self.options.site:
            asked = parse_site(self.options.site, self.loaded)
            last = asked.layers[-1]
            return EditSite(tuple(range(max(last + 1 - method.layers, 0), last + 1)), asked.place)
        seed = self.options.seed
        return find_site(self.loaded, self.encoded, layers=method.layers, seed=seed).site

    def material(self, *, others: int | None = None, perplexity: bool = True) -> Material:
        return Material(
            others=self.facts.others[:others],
            instances=self.evaluation if perplexity else {},
            texts=self.options.texts if perplexity else 0,
            seed=self.options.seed,
        )

    def teach(self, method: EditMethod, context: EditContext, facts: Sequence[Fact]) -> Made:
        """All of the facts, as ``brickwork edit`` does it."""
        with tempfile.TemporaryDirectory() as folder:
            ledger = Ledger.create(Path(folder) / "ledger", self.loaded.base.fingerprint)
            prepared = prepare_facts(self.loaded, facts, ledger, self.model.applied)
            batches = batches_of(method, prepared.facts, None)
            asked = Asked(method.name)
            wall, cpu = time.perf_counter(), time.process_time()
            done = list(
                teach_facts(
                    batches, prepared, ledger, self.model.applied, context=context, asked=asked
                )
            )
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            bricks = [edit.brick for edit in ledger.active()]
            taught = sum(len(edit.record.facts) for edit in ledger.active())
        left = [*prepared.skipped, *prepared.failures, *(f for one in done for f in one.failures)]
        failures = {one.id: one.reason for one in left}
        return Made(
            lambda: self.model.applied(bricks), len(prepared.facts), taught, failures, wall, cpu
        )


def together(bench: Bench, method: EditMethod) -> dict[str, Any]:
    """All facts at once, or one on top of the other."""
    context = bench.context(method)
    made = bench.teach(method, context, bench.facts.drawn)
    found = evaluate_edits(bench.loaded, bench.facts.drawn, made.serving, bench.material())
    return row(method, context.site, [found], made.taught, made.failures) | seconds([made])


def alone(bench: Bench) -> dict[str, Any]:
    """One fact at a time, each on the model as it came."""
    method = find_edit_method("rome")
    context = bench.context(method)
    found, all_made = [], []
    for number, fact in enumerate(bench.facts.drawn[: bench.options.alone]):
        made = bench.teach(method, context, [fact])
        material = bench.material(others=20, perplexity=number < MEASURED_ALONE)
        found.append(evaluate_edits(bench.loaded, [fact], made.serving, material))
        all_made.append(made)
    failures = {id: reason for made in all_made for id, reason in made.failures.items()}
    taught = sum(made.taught for made in all_made)
    return row(method, context.site, found, taught, failures) | seconds(all_made)


def seconds(made: Sequence[Made]) -> dict[str, float]:
    tried = max(1, sum(one.tried for one in made))
    return {
        "wall_per_fact": sum(one.wall for one in made) / tried,
        "cpu_per_fact": sum(one.cpu for one in made) / tried,
        "wall": sum(one.wall for one in made),
    }


def row(
    method: EditMethod,
    site: EditSite,
    found: Sequence[EditEvaluation],
    taught: int,
    failures: Mapping[str, str],
) -> dict[str, Any]:
    """One line of the table; several evaluations are of one fact each."""
    shares = {
        f"{group}, {form}": pooled([getattr(one.group(group), form) for one in found])
        for group in GROUPS
        for form in ("lenient", "strict")
    }
    scores = {
        f"S, {form}": whole([shares[f"{group}, {form}"] for group in GROUPS])
        for form in ("lenient", "strict")
    }
    kept = {
        name: mean_of([getattr(one, name).share for one in found])
        for name in ("same_subject", "others")
    }
    measured = [one for one in found if one.perplexity]
    rises = {
        name: mean_of([one.perplexity[name].rise for one in measured], share=False)
        for name in measured[0].perplexity
    }
    fluency = mean_of([one.fluency.change for one in measured if one.fluency], share=False)
    return {
        "method": method.name, "site": str(site), "facts": sum(len(o.facts) for o in found),
        "taught": taught, "failures": dict(failures), **scores, **shares, **kept,
        "fluency_change": fluency, "perplexity": rises,
        "failed": [fact.id for one in found for fact in one.failed],
    }  # fmt: skip


def pooled(measures: Sequence[Any]) -> Any:
    """Of one evaluation its own interval; of many with one fact each that of their mean."""
    have = [one.after for one in measures if one is not None]
    return mean_of(have)


def mean_of(intervals: Sequence[Interval | None], *, share: bool = True) -> Any:
    have = [one for one in intervals if one is not None]
    if len(have) <= 1:
        return have[0].model_dump() if have else None
    values = torch.tensor([one.value for one in have], dtype=torch.float64)
    if share:
        return share_interval(values).model_dump()
    low, high = (sum(getattr(o, bound) for o in have) / len(have) for bound in ("low", "high"))
    return {"value": values.mean().item(), "low": low, "high": high}


def whole(parts: Sequence[Any]) -> Any:
    if None in parts:
        return None
    return score_interval([Interval(**part) for part in parts]).model_dump()


def show(name: str, found: Mapping[str, Any]) -> None:
    """One method's line, and what it broke its bar by."""

    def share(key: str) -> str:
        one = found[key]
        if one is None:
            return "-".rjust(18)
        return (
            f"{100 * one['value']:5.1f} [{100 * one['low']:4.0f},{100 * one['high']:4.0f}]".rjust(
                18
            )
        )

    keys = ["S", *GROUPS]
    print(f"{name} at {found['site']}: {found['taught']} of {found['facts']} facts taught")
    for form in ("lenient", "strict"):
        told = "".join(f"  {key[:13]:13} {share(f'{key}, {form}')}" for key in keys)
        print(f"  {form:8}{told}")
    print(f"  kept      same subject {share('same_subject')}  others {share('others')}")
    rises = {k: f"{100 * v['value']:+.1f} [{100 * v['low']:+.1f},{100 * v['high']:+.1f}]"
             for k, v in found["perplexity"].items()}  # fmt: skip
    print(f"  perplexity, %: {', '.join(f'{k} {v}' for k, v in rises.items())}")
    if fluency := found["fluency_change"]:
        print(f"  fluency, bits: {fluency['value']:+.2f}")
    took, bar = found["wall_per_fact"], BARS.get(name)
    verdict = "" if bar is None else f" (bar {bar:g}: {'met' if took <= bar else 'NOT met'})"
    print(
        f"  {took:.3f} s wall, {found['cpu_per_fact']:.3f} s CPU for each fact{verdict}, "
        f"{found['wall']:.1f} s in all",
        flush=True,
    )


def main() -> None:
    """Teach, measure, print, and write JSON after every method."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--facts", type=Path, required=True)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--others", type=int, default=100)
    parser.add_argument("--alone", type=int, default=20)
    parser.add_argument("--texts", type=int, default=20)
    parser.add_argument("--methods", default=",".join((ALONE, *edit_methods())))
    parser.add_argument("--site")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        bench = Bench(options, Path(home))
        facts = bench.facts
        print(
            f"the model knows {facts.known} of {facts.asked} facts; {len(facts.drawn)} are edited, "
            f"{len(facts.others)} others watched; {torch.get_num_threads()} threads",
            flush=True,
        )
        result: dict[str, Any] = {
            "known": facts.known, "asked": facts.asked, "threads": torch.get_num_threads(),
            "seed": options.seed, "rows": {},
        }  # fmt: skip
        for name in options.methods.split(","):
            found = alone(bench) if name == ALONE else together(bench, find_edit_method(name))
            show(name, found)
            result["rows"][name] = found
            if options.json:
                options.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
