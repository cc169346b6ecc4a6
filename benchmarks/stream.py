"""New tasks one after the other on the reference model: what is learned, and what is forgotten.

    python -m benchmarks.stream --data FOLDER --out FOLDER [--steps 40] [--strategies full,lora]

``--data`` is the folder that holds instructions/train.jsonl.gz. Candidates are tasks that the base
was never trained on: those withheld from it, those of share-alike licences, and generated ones. Of
each functionality the one is taken that the base predicts worst, if its examples are short (80
tokens on average) and many enough (300); so the stream has a task for each functionality that has
any, in the order of their names.

Every strategy takes about as many steps over as many tokens (LoRAs of tasks go through their
examples in whole rounds). ``bricks`` has a LoRA for each task, the same LoRAs for every router and
for the oracle; ``retrieval`` finds them by their exemplars as the
store does, ``classifier`` is trained on the training instructions. Replay is from a memory brick
of 512 instances, to which the base's own functionalities belong from the start.

Losses are of held-out examples; what is forgotten is measured on the packaged probe instances.
A strategy that is in FOLDER/stream.json already is not run again, nor are bricks built twice.
"""

import argparse
import random
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from brickwork import __version__
from brickwork.brick.brick import Brick
from brickwork.brick.folder import is_brick_folder, read_brick, write_brick
from brickwork.brick.spec import Function, Metric
from brickwork.build.task import About, LoraRecipe, build_task
from brickwork.grow.answering import Examples
from brickwork.grow.memory import MemoryRecipe, remember
from brickwork.grow.router_features import WordFeatures
from brickwork.grow.strategy import Router, StreamContext, StreamTask
from brickwork.grow.stream import facts_of, run_stream, write_study
from brickwork.grow.stream_measures import average, backward_transfer, gain_share
from brickwork.grow.stream_results import STREAM_FILE, StreamResult, StreamStudy
from brickwork.grow.task_router import TaskRouter, empty_router, extend_router
from brickwork.measure.instances import Instance, encode_instances, read_instances
from brickwork.measure.perplexity import instance_losses
from brickwork.measure.states import pooled_states
from brickwork.model.cost import token_flops
from brickwork.model.fit import FitRecipe
from brickwork.model.load import LoadedModel, load_model
from brickwork.model.train import Encoded, batches_by_length
from brickwork.reference.corpus import is_withheld, share_alike_tasks, training_instances
from brickwork.reference.paths import model_folder
from brickwork.reference.probe import probe_instances
from brickwork.reference.tasks import EVERYTHING, additions, robot_commands
from brickwork.report.stream import read_stream, write_stream_report
from brickwork.route.choose import choose_embedder
from brickwork.route.retrieve import Retriever
from brickwork.route.states import BaseStates
from brickwork.route.texts import BrickTexts
from brickwork.runtime.brick_rows import row_logits
from brickwork.runtime.plan import flops_per_token

LONGEST, SHORT, MANY, EXEMPLARS = 192, 80, 300, 12
# Of three rates each, 5e-4 to 2e-3 (full), 2e-3 to 8e-3 (LoRA) and 1e-3 to 4e-3 (blocks), those
# that learn French to English best in 50 steps.
RATES = {"full": 1e-3, "lora": 8e-3, "blocks": 4e-3, "bricks": 8e-3}
BACKGROUND, REMEMBERED = 1000, 512

# What is run: a name, the strategy, its options, and which router it has.
RUNS: tuple[tuple[str, str, dict[str, Any], str], ...] = (
    ("oracle", "oracle", {}, ""),
    ("bricks, classifier", "bricks", {}, "classifier"),
    ("bricks, retrieval", "bricks", {}, "retrieval"),
    ("full", "full", {}, ""),
    ("lora", "lora", {}, ""),
    ("blocks", "blocks", {"blocks": 2}, ""),
    ("full, replay 5 %", "full", {"replay": 0.05, "instances": REMEMBERED}, ""),
    ("full, replay 25 %", "full", {"replay": 0.25, "instances": REMEMBERED}, ""),
    ("lora, replay 25 %", "lora", {"replay": 0.25, "instances": REMEMBERED}, ""),
)


def candidates(data: Path) -> dict[str, list[Instance]]:
    """Tasks that the base has never seen, in the order of the data; BLiMP's choices as one."""
    unseen = share_alike_tasks(data / "instructions" / "tasks.tsv")
    found: dict[str, list[Instance]] = defaultdict(list)
    every = read_instances(data / "instructions" / "train.jsonl.gz")
    for one in (*every, *additions(data), *robot_commands(data)):
        if (
            one.task in unseen
            or is_withheld(one.task)
            or one.task in ("addition", "robot_commands")
        ):
            name = "blimp_choice" if one.task.startswith("blimp_choice_") else one.task
            found[name].append(one)
    return found


def choose(loaded: LoadedModel, data: Path) -> dict[str, list[Instance]]:
    """Of each functionality the task that the base predicts worst, if it is short and large."""
    chosen: dict[str, tuple[float, str, list[Instance]]] = {}
    for name, own in candidates(data).items():
        random.Random(0).shuffle(own)
        sample = encoded(loaded, own[:40])
        short = [s for _, s in sample]
        if len(own) < MANY or not short or sum(len(s.ids) for s in short) > SHORT * len(short):
            continue
        losses = instance_losses(loaded.model, short)
        loss = (losses.response.sum() / losses.response_tokens.sum()).item()
        print(f"  {own[0].functionality:12} {name:44} {loss:.2f} nats", flush=True)
        key = own[0].functionality
        chosen[key] = max(chosen.get(key, (0.0, "", [])), (loss, name, own), key=lambda c: c[0])
    return {name: own for _, (_, name, own) in sorted(chosen.items())}


def encoded(loaded: LoadedModel, own: Sequence[Instance]) -> list[tuple[str, Encoded]]:
    """Instructions with their token ids, without those that are too long."""
    pairs = zip(own, encode_instances(loaded, own, LONGEST + 1).sequences, strict=True)
    return [(one.prompt, s) for one, s in pairs if s is not None and len(s.ids) <= LONGEST]


def task_of(name: str, own: Sequence[Instance], loaded: LoadedModel, test: int) -> StreamTask:
    pairs = encoded(loaded, own[:900])
    held, train = pairs[:test], pairs[test : test + 600]
    asked, told = zip(*train, strict=True)
    test_prompts, tests = zip(*held, strict=True)
    text = asked[0].split("\n")[0]
    brick = name.removeprefix("ni_").split("_", 1)[-1] if name.startswith("ni_") else name
    return StreamTask(
        brick.replace("_", "-"), own[0].functionality, text, asked, told, tests, test_prompts
    )


class Bench:
    """The model, the stream, and what the strategies need."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.loaded = load_model(
            str(model_folder()), device="cpu", dtype="float32", name="reference"
        )
        chosen = choose(self.loaded, options.data)
        self.tasks = [task_of(name, own, self.loaded, options.test) for name, own in chosen.items()]
        seen = training_instances(options.data)
        random.Random(1).shuffle(seen)
        self.instructions = [one.prompt for one in seen[:BACKGROUND]]
        self.background = self.probe(options.probe)
        self.memory: Brick | None = None
        for name in self.background:
            own = [
                s
                for _, s in encoded(self.loaded, [i for i in seen if i.functionality == name][:400])
            ]
            recipe = MemoryRecipe(instances=REMEMBERED)
            self.memory = remember(self.loaded, name, own, recipe, memory=self.memory)
        self.taught: dict[int, TaskRouter] = {0: empty_router(WordFeatures(self.instructions))}

    @property
    def routers(self) -> dict[str, Callable[[Sequence[StreamTask]], Router]]:
        return {"classifier": self.classifier, "retrieval": self.retrieval}

    def probe(self, most: int) -> dict[str, Examples]:
        found: dict[str, list[tuple[str, Encoded]]] = defaultdict(list)
        for one, sequence in self._probed():
            if len(found[one.functionality]) < most:
                found[one.functionality].append((one.prompt, sequence))
        return {
            name: Examples(*(tuple(side) for side in zip(*own, strict=True)))
            for name, own in sorted(found.items())
        }

    def _probed(self) -> Iterator[tuple[Instance, Encoded]]:
        instances = probe_instances()
        random.Random(2).shuffle(instances)
        for one, s in zip(
            instances, encode_instances(self.loaded, instances, 257).sequences, strict=True
        ):
            if s is not None and len(s.ids) <= 256:
                yield one, s

    def build(self, task: StreamTask, _earlier: Sequence[Brick]) -> Brick:
        """The task's LoRA, from its folder if it was built before."""
        folder = self.options.out / "bricks" / task.name
        if is_brick_folder(folder):
            return read_brick(folder)
        budget = self.options.tokens
        groups = batches_by_length(task.train, budget, random.Random(0))
        recipe = LoraRecipe(
            16, 32, EVERYTHING, rate=RATES["bricks"], tokens_per_batch=budget,
            epochs=max(1, round(self.options.steps / len(groups))), seed=self.options.seed,
        )  # fmt: skip
        function = Function(
            text=task.text, labels=(task.functionality,), exemplars=task.prompts[:EXEMPLARS]
        )
        start = time.perf_counter()
        about = About(task.name, function, f"{len(task.train)} examples")
        train = [sequence for group in groups[: self.options.steps] for sequence in group]
        brick = build_task(self.loaded, train, recipe, about)
        took = Metric(name="building", after=time.perf_counter() - start, unit="seconds")
        brick = Brick(brick.spec.model_copy(update={"metrics": (took,)}), brick.tensors)
        folder.parent.mkdir(parents=True, exist_ok=True)
        write_brick(brick, folder)
        return brick

    def classifier(self, tasks: Sequence[StreamTask]) -> Router:
        """One more task for the router that knows the ones before."""
        if len(tasks) not in self.taught:
            *earlier, last = tasks
            others = [prompt for task in earlier for prompt in task.prompts]
            self.taught[len(tasks)] = extend_router(
                self.taught[len(earlier)], last.name, last.prompts,
                background=self.instructions, others=others,
            )  # fmt: skip
        return self.taught[len(tasks)]

    def retrieval(self, tasks: Sequence[StreamTask]) -> Router:
        """The store's retrieval over the texts that the bricks carry."""
        corpus = [BrickTexts(t.name, t.name, t.text, t.prompts[:EXEMPLARS]) for t in tasks]
        states = BaseStates(
            self.loaded.base.fingerprint.weights, lambda texts: pooled_states(self.loaded, texts)
        )
        embedder, choice = choose_embedder(corpus, states=states)
        print(f"  retrieval by {choice.name}: {choice.reason}", flush=True)
        retriever = Retriever(corpus, embedder, background=self.instructions[:140])

        def route(prompts: Sequence[str]) -> list[str | None]:
            found = retriever.retrieve_many(prompts)
            return [next((hit.reference for hit in one.chosen), None) for one in found]

        return route

    def strays(self, router: Callable[[Sequence[StreamTask]], Router]) -> str:
        """How many of all probe instructions, none of which is of a task, go to a brick."""
        prompts = [one.prompt for one in probe_instances()]
        sent = [name for name in router(self.tasks)(prompts) if name is not None]
        return f"{len(sent)} of {len(prompts)} ({', '.join(sorted(set(sent))) or 'none'})"

    def run(self, label: str, strategy: str, options: dict[str, Any], router: str) -> StreamResult:
        context = StreamContext(
            self.loaded,
            FitRecipe(
                RATES.get(strategy, 0.0), self.options.steps, tokens_per_batch=self.options.tokens,
                seed=self.options.seed,
            ),
            memory=self.memory,
            build=self.build,
            router=self.routers.get(router),
            logits=row_logits(self.loaded),
            brick_flops=lambda brick: flops_per_token(brick, self.loaded),
        )  # fmt: skip
        found = run_stream(
            context, self.tasks, strategy=strategy, options=options, background=self.background,
            label=label,
        )  # fmt: skip
        return self.with_building(found) if strategy in ("oracle", "bricks") else found

    def with_building(self, found: StreamResult) -> StreamResult:
        """The time that the bricks took when they were built, not when they were read again."""
        folders = [self.options.out / "bricks" / task.name for task in self.tasks]
        took = [read_brick(folder).spec.metrics[0].after for folder in folders]
        costs = [
            cost.model_copy(update={"seconds": seconds})
            for cost, seconds in zip(found.costs, took, strict=True)
        ]
        return found.model_copy(update={"costs": costs})

    def study(self, results: Sequence[StreamResult]) -> StreamStudy:
        told = self.options
        return StreamStudy(
            brickwork=__version__,
            model="reference",
            parameters=sum(p.numel() for p in self.loaded.model.parameters()),
            flops=token_flops(self.loaded.model),
            data=f"{told.steps} steps of {told.tokens} tokens for each task; probe instances",
            seed=told.seed,
            tasks=[facts_of(task) for task in self.tasks],
            functionalities=list(self.background),
            results=[one for run in RUNS for one in results if one.label == run[0]],
        )


def show(one: StreamResult, oracle: StreamResult) -> None:
    """A strategy's line: what it learned, and what the base forgot."""
    share = gain_share(one.losses, oracle.losses)
    change = one.overall.change if one.overall else None
    routed = [served for name, served in one.served.items() if name in one.base]
    wrong, asked = sum(s.other for s in routed), sum(s.prompts for s in routed)
    print(
        f"{one.label:20} loss {average(one.losses):5.3f}  right {average(one.accuracies):6.1%}  "
        f"oracle's gain {share:7.1%}  forgotten {backward_transfer(one.losses) or 0:+.3f}  "
        f"base {change.value:+.4f} [{change.low:+.4f}, {change.high:+.4f}]  "
        f"{one.costs[-1].parameters:>9,} numbers {one.costs[-1].flops:>9,} FLOPs  "
        f"{sum(c.seconds for c in one.costs):6.0f} s + {one.measured_seconds:.0f} s"
        + (f"  routed {wrong} of {asked}, {one.moved} of {one.untouched} moved" if routed else "")
        if change
        else one.label,
        flush=True,
    )


def main() -> None:
    """Choose the tasks, run what is not there yet, print, and write after every strategy."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--tokens", type=int, default=512, help="of a batch")
    parser.add_argument("--test", type=int, default=40, help="examples of each task")
    parser.add_argument("--probe", type=int, default=20, help="instances of each functionality")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--strategies", default=",".join(dict.fromkeys(run[1] for run in RUNS)))
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    bench = Bench(options)
    results: list[StreamResult] = []
    if (options.out / STREAM_FILE).exists():
        before = read_stream(options.out)
        if before.model_dump(exclude={"results"}) != bench.study([]).model_dump(
            exclude={"results"}
        ):
            raise SystemExit(f"{options.out} holds another study; name another folder.")
        results = list(before.results)
    for task in bench.tasks:
        print(f"{task.functionality:12} {task.name:36} {len(task.train)} + {len(task.test)}")
    for label, strategy, given, router in RUNS:
        if strategy in options.strategies.split(",") and label not in [r.label for r in results]:
            results.append(bench.run(label, strategy, given, router))
            write_study(bench.study(results), options.out)
        done = next((one for one in results if one.label == label), None)
        oracle = next((one for one in results if one.strategy == "oracle"), None)
        if done and oracle:
            show(done, oracle)
    for name, make in bench.routers.items():
        print(f"{name}: probe instructions sent to a brick: {bench.strays(make)}")
    write_stream_report(bench.study(results), options.out)


if __name__ == "__main__":
    main()
