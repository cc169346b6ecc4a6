"""What a strategy is given by ``brickwork grow task``: a builder of bricks, a router, a memory."""

import random
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from brickwork.brick.brick import Brick
    from brickwork.cli.grow_task_inputs import Stream
    from brickwork.grow.strategy import Router, StreamContext, StreamTask
    from brickwork.grow.task_router import TaskRouter
    from brickwork.model.load import LoadedModel

_EXEMPLARS = 12  # instructions that a brick carries to be found by
_BACKGROUND = 140  # instructions that retrieval learns to abstain on
_ROUTER, _CONSOLIDATION = "router", "consolidation.json"


class Kit:
    """Builds each brick and each router once, for all strategies of a run.

    ``routing`` says what the last retrieval compares instructions by; empty if there was none.

    Args:
        loaded: the base, in float32.
        stream: the tasks, and what the base can do.
        options: those of the command.
        advance: told of each step of a training.
    """

    def __init__(
        self,
        loaded: "LoadedModel",
        stream: "Stream",
        options: Mapping[str, Any],
        advance: Callable[[float], None],
    ) -> None:
        self._loaded, self._stream, self._options = loaded, stream, options
        self._report = lambda _step, _steps, _loss: advance(1)
        self.routing = ""
        self._bricks: dict[str, Brick] = {}
        self._taught: dict[int, TaskRouter] = {}

    def context(self) -> "StreamContext":
        """What every strategy may need."""
        from brickwork.grow.strategy import StreamContext
        from brickwork.model.fit import FitRecipe
        from brickwork.runtime.brick_rows import row_logits
        from brickwork.runtime.plan import flops_per_token

        told = self._options
        routers = {"retrieval": self._retrieval, "classifier": self._classifier}
        return StreamContext(
            self._loaded,
            FitRecipe(told["rate"], told["steps"], told["batch"], seed=told["seed"]),
            memory=self._memory if "replay" in told["settings"] else None,
            build=self._build,
            router=routers[told["router"]],
            logits=row_logits(self._loaded),
            brick_flops=lambda brick: flops_per_token(brick, self._loaded),
            report=self._report,
        )

    def write(self, folder: Path) -> None:
        """Write the bricks, and the last classifier if there is one."""
        from brickwork.brick.folder import write_brick
        from brickwork.grow.task_router import write_router

        for name, brick in self._bricks.items():
            (folder / "bricks").mkdir(exist_ok=True)
            write_brick(brick, folder / "bricks" / name)
        if len(self._taught) > 1:
            write_router(self._taught[max(self._taught)], folder / _ROUTER)

    def consolidated(self, least: float | None, folder: Path) -> dict[str, Any]:
        """Merge bricks that do alike, by their mean, and say what every task loses by it.

        The merged bricks are written with the others, which stay.
        """
        from brickwork.brick.durable import write_file
        from brickwork.brick.files import json_bytes
        from brickwork.combine.bricks import combine_bricks
        from brickwork.grow.consolidate import consolidate, similar_groups
        from brickwork.runtime.brick_rows import row_logits

        if least is None:
            return {}
        groups = similar_groups(self._bricks, least)
        if not groups:
            return {"consolidation": None}
        made = consolidate(
            self._bricks, groups,
            lambda bricks, name: combine_bricks(
                bricks, "linear", parameters={"weight": 1.0}, name=name
            ).brick,
            tasks=self._stream.tasks, logits=row_logits(self._loaded),
        )  # fmt: skip
        document = made.document.model_dump(mode="json")
        write_file(folder / _CONSOLIDATION, json_bytes(_CONSOLIDATION, document))
        merged = {name: made.bricks[members[0]] for name, members in groups.items()}
        self._bricks |= merged
        return {"consolidation": document}

    def kept(self, store: Path | None) -> dict[str, str]:
        """Put the bricks into a store, if there is to be one: their references by task."""
        from brickwork.store.store import Store

        if store is None:
            return dict.fromkeys(self._bricks, "")
        with Store.open(store) as opened:
            return {name: opened.add(brick).reference for name, brick in self._bricks.items()}

    def _build(self, task: "StreamTask", _earlier: "Sequence[Brick]") -> "Brick":
        """The task's LoRA: as many steps as asked for, in whole rounds through the examples."""
        from brickwork.brick.spec import Function
        from brickwork.build.task import About, LoraRecipe, build_task
        from brickwork.grow.strategy_models import lora_targets
        from brickwork.model.train import batches_by_length

        if task.name in self._bricks:
            return self._bricks[task.name]
        told = self._options
        rounds = len(batches_by_length(task.train, told["batch"], random.Random(told["seed"])))
        recipe = LoraRecipe(
            told["rank"], 2 * told["rank"], lora_targets(self._loaded), rate=told["rate"],
            epochs=max(1, round(told["steps"] / rounds)), tokens_per_batch=told["batch"],
            seed=told["seed"],
        )  # fmt: skip
        exemplars = tuple(dict.fromkeys(task.prompts))[:_EXEMPLARS]
        function = Function(text=task.text, labels=(task.functionality,), exemplars=exemplars)
        about = About(task.name, function, f"{len(task.train)} examples")
        self._bricks[task.name] = build_task(self._loaded, task.train, recipe, about, self._report)
        return self._bricks[task.name]

    @cached_property
    def _instructions(self) -> list[str]:
        """Of what the base can do, of all functionalities in turn."""
        own = [[prompt for prompt, _ in pairs] for pairs in self._stream.known.values()]
        longest = max(map(len, own), default=0)
        return list(chain.from_iterable(
            [prompts[place] for prompts in own if place < len(prompts)] for place in range(longest)
        ))  # fmt: skip

    def _retrieval(self, tasks: "Sequence[StreamTask]") -> "Router":
        """As ``brickwork run`` finds bricks: over the texts that they carry."""
        from brickwork.measure.states import pooled_states
        from brickwork.route.choose import choose_embedder
        from brickwork.route.retrieve import Retriever
        from brickwork.route.states import BaseStates
        from brickwork.route.texts import BrickTexts

        corpus = [
            BrickTexts(name, name, function.text, function.exemplars)
            for name, function in ((t.name, self._bricks[t.name].spec.function) for t in tasks)
        ]
        weights = self._loaded.base.fingerprint.weights
        states = BaseStates(weights, lambda texts: pooled_states(self._loaded, texts))
        embedder, choice = choose_embedder(corpus, states=states)
        self.routing = f"{choice.name}: {choice.reason}"
        few = list(islice(self._instructions, _BACKGROUND))
        retriever = Retriever(corpus, embedder, background=few)

        def route(prompts: Sequence[str]) -> list[str | None]:
            found = retriever.retrieve_many(prompts)
            return [next((hit.reference for hit in one.chosen), None) for one in found]

        return route

    def _classifier(self, tasks: "Sequence[StreamTask]") -> "Router":
        """The router that knows the tasks before, with the last one more."""
        from brickwork.grow.router_features import WordFeatures
        from brickwork.grow.task_router import empty_router, extend_router

        if not self._taught:
            self._taught[0] = empty_router(WordFeatures(self._instructions))
        if len(tasks) not in self._taught:
            *earlier, last = tasks
            self._taught[len(tasks)] = extend_router(
                self._taught[len(earlier)], last.name, last.prompts,
                background=self._instructions,
                others=[prompt for task in earlier for prompt in task.prompts],
            )  # fmt: skip
        return self._taught[len(tasks)]

    @cached_property
    def _memory(self) -> "Brick":
        """What the base learned before, as far as the data shows it."""
        from brickwork.grow.memory import MemoryRecipe, remember
        from brickwork.grow.strategies import find_strategy

        given: Any = find_strategy(self._options["names"][0]).parse(self._options["settings"])
        recipe = MemoryRecipe(
            instances=given.instances, selector=given.selector, seed=self._options["seed"]
        )
        memory: Brick | None = None
        for name, pairs in self._stream.known.items():
            own = [sequence for _, sequence in pairs]
            memory = remember(self._loaded, name, own, recipe, memory=memory)
        assert memory is not None, "replay asks for data"
        return memory
