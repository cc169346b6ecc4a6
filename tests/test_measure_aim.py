"""What a choice is for, and what it costs: instances to choose on, others to measure on."""

import pytest
import torch

from brickwork.errors import DataError, UnknownNameError
from brickwork.measure.aim import EXAMPLES, aim_at, aim_like
from brickwork.measure.choice import choose
from brickwork.measure.instances import Instance
from brickwork.measure.need import Asked, measure_need
from brickwork.measure.trial import try_choice
from brickwork.model.load import LoadedModel, wrap_model
from tests.tiny import tiny_model, tiny_tokenizer


def words() -> LoadedModel:
    return wrap_model(tiny_model("llama"), tiny_tokenizer(), "tiny")


def labelled(count: int = 20) -> list[Instance]:
    return [
        Instance(name, f"{name} {i} the an", f"an {i}")
        for name in ("Coding", "Math", "Writing")
        for i in range(count)
    ]


def test_an_aim_measures_on_others_than_it_chooses_on() -> None:
    aim = aim_at(words(), labelled(), "coding", evaluation=3)
    assert aim.name == "Coding"
    assert len(aim.choosing) == len(aim.instances) == 17
    assert {name: len(own) for name, own in aim.evaluation.items()} == {
        "Coding": 3, "Math": 3, "Writing": 3,
    }  # fmt: skip
    assert not {i.prompt for i in aim.instances} & aim.measured
    trained = aim.unmeasured(words(), labelled())
    assert len(trained) == 60 - 9


def test_examples_are_an_aim_of_their_own() -> None:
    examples = [Instance("", f"do {i} the an", "an") for i in range(10)]
    aim = aim_like(words(), examples + examples, labelled(), evaluation=5)
    assert aim.name == EXAMPLES
    assert (len(aim.choosing), len(aim.evaluation[EXAMPLES])) == (16, 4)  # equal prompts together
    assert set(aim.evaluation) == {EXAMPLES, "Coding", "Math", "Writing"}
    assert set(aim_like(words(), examples).evaluation) == {EXAMPLES}


def test_what_is_chosen_on_is_not_measured_on_in_other_data() -> None:
    examples = [Instance("", instance.prompt, instance.response) for instance in labelled()[:20]]
    aim = aim_like(words(), examples, labelled(), evaluation=4)
    assert not {i.prompt for i in aim.instances} & aim.measured


def test_a_trial_sees_the_full_model_the_choice_and_chance() -> None:
    loaded = words()
    aim = aim_at(loaded, labelled(), "math", evaluation=2)
    question = Asked(loaded, "neurons", aim.choosing, torch.Generator())
    whole = choose(question, measure_need(question, "magnitude"), "magnitude", density=1.0)
    trial = try_choice(loaded, aim, whole, generator=torch.Generator().manual_seed(0))
    assert trial.before == trial.kept
    assert trial.random == pytest.approx(trial.before)
    assert set(trial.rows()["Math"]) == {"before", "kept", "random"}
    few = choose(question, measure_need(question, "attribution"), "attribution", density=0.1)
    trial = try_choice(loaded, aim, few, generator=torch.Generator().manual_seed(0), controls=2)
    assert len({trial.before["Math"], trial.kept["Math"], trial.random["Math"]}) == 3


def test_aims_are_refused() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'Writing'"):
        aim_at(words(), labelled(), "writng")
    with pytest.raises(DataError, match="1 different prompts"):
        aim_like(words(), [Instance("", "the", "an")] * 3)
