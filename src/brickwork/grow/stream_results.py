"""What a stream of tasks did, as one document: the schema of ``stream.json``.

It holds numbers and names only, so that a page can be drawn from it without a model.
"""

from collections.abc import Iterator

from pydantic import JsonValue

from brickwork.measure.results import Interval, Result

STREAM_FILE, FORMAT = "stream.json", 1


class TaskFacts(Result):
    """One task of the stream, in the order in which they were learned."""

    name: str
    functionality: str
    text: str
    """What the task asks for, in words."""
    train: int
    """Examples that it was learned from."""
    test: int
    """Examples that it was measured on."""
    test_tokens: int
    """Response tokens of these."""


class Served(Result):
    """Who answered the prompts of a task, or of one of the base's own functionalities."""

    prompts: int
    own: int
    """Answered with the brick of the task that they belong to."""
    other: int
    """Answered with the brick of another task."""
    none: int
    """Answered by the base alone."""


class BaseChange(Result):
    """How one of the base's own functionalities stands at the end of the stream."""

    instances: int
    before: Interval
    """Nats per response token before the stream."""
    change: Interval
    """By how many it rose, the same instances compared."""


class StepCost(Result):
    """What a strategy had added after a task."""

    parameters: int
    """Numbers that are kept beside the base."""
    flops: int
    """Operations that a served token takes more than in the base, at most."""
    seconds: float
    """Time of learning the task."""


class StreamResult(Result):
    """One strategy over one stream of tasks.

    Matrices have a row before the first task and one after each.
    """

    strategy: str
    """Row of STRATEGIES."""
    label: str
    """How it is called on the page."""
    options: dict[str, JsonValue]
    losses: list[list[float]]
    """Nats per response token, a column for each task."""
    accuracies: list[list[float]]
    """Share of responses of which every token is the likeliest, a column for each task."""
    base_losses: list[list[float]]
    """Nats per response token, a column for each of the base's functionalities."""
    base: dict[str, BaseChange]
    """The base's functionalities at the end of the stream."""
    overall: BaseChange | None
    """All of them together; None: none were measured."""
    served: dict[str, Served]
    """Who answered at the end, by task and functionality; empty where one model answers all."""
    untouched: int
    """Instances of the base's functionalities that the base alone answered at the end."""
    moved: int
    """How many of these have another loss than before, by any bit."""
    costs: list[StepCost]
    """After each task."""
    measured_seconds: float
    """Time of all measuring."""


class ConsolidatedTask(Result):
    """One task before and after its brick was merged with others; nats per response token."""

    name: str
    group: str
    """Name of the brick that it shares; empty: it kept its own."""
    base: float
    """With no brick."""
    before: float
    """With its own brick."""
    after: float
    """With the brick that it has now."""


class Consolidation(Result):
    """What it cost to make one brick of several."""

    tasks: list[ConsolidatedTask]
    parameters_before: int
    """Numbers of all bricks."""
    parameters_after: int


class StreamStudy(Result):
    """Several strategies over the same stream."""

    format: int = FORMAT
    brickwork: str
    model: str
    parameters: int
    """Of the base."""
    flops: int
    """Operations of the base for each token."""
    data: str
    seed: int
    tasks: list[TaskFacts]
    functionalities: list[str]
    results: list[StreamResult]

    def result(self, strategy: str) -> StreamResult | None:
        """The first of a strategy, if there is one."""
        return next((one for one in self.results if one.strategy == strategy), None)


def study_problems(study: StreamStudy) -> Iterator[str]:
    """What cannot be true of any study, by field."""
    if not study.tasks:
        yield "tasks: there are none"
    if not study.results:
        yield "results: there are none"
    labels = [one.label for one in study.results]
    for label in sorted({label for label in labels if labels.count(label) > 1}):
        yield f"results: {label!r} is there {labels.count(label)} times"
    for place, one in enumerate(study.results):
        yield from (f"results.{place}.{problem}" for problem in _result_problems(one, study))


def _result_problems(one: StreamResult, study: StreamStudy) -> Iterator[str]:
    rows, tasks, names = len(study.tasks) + 1, len(study.tasks), study.functionalities
    wanted = {"losses": tasks, "accuracies": tasks, "base_losses": len(names)}
    for field, columns in wanted.items():
        matrix = getattr(one, field)
        if len(matrix) != rows or any(len(row) != columns for row in matrix):
            yield f"{field}: is not of {rows} rows and {columns} columns"
    if len(one.costs) != tasks:
        yield f"costs: are not of the {tasks} tasks"
    if list(one.base) != names:
        yield f"base: is not of {', '.join(names) or 'no functionality'}"
    if (one.overall is None) != (not names):
        yield "overall: does not go with the functionalities"
    unknown = set(one.served) - {task.name for task in study.tasks} - set(names)
    if unknown:
        yield f"served: holds {', '.join(sorted(unknown))}, which was not measured"
    for name, served in one.served.items():
        if served.own + served.other + served.none != served.prompts:
            yield f"served.{name}: does not add up to {served.prompts} prompts"
