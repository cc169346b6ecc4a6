"""Knowledge neurons made silent, or louder, by a brick.

This is for taking an answer away from a model, or for making it surer of one: for unlearning, and
for asking whether neurons that were found do what attribution says. It writes no new answer, so as
an editor of facts it is weak: the edit's target is not used.

Source: Dai et al. 2022, Knowledge Neurons in Pretrained Transformers (arXiv:2104.08696), 5.
Departure: the neurons are changed at every token, since a brick does not know where an answer is.
"""

from collections.abc import Sequence

import torch
from pydantic import BaseModel, ConfigDict, Field

from brickwork.errors import EditError
from brickwork.model.load import LoadedModel
from brickwork.model.parts import ffn_row_of, layers_of, part_of
from brickwork.model.units import unit_counts
from brickwork.update.knowledge_neurons import NeuronRecipe, find_neurons
from brickwork.update.method import Draft, EditContext
from brickwork.update.recall import Recall, recall_fact
from brickwork.update.words import EncodedFact, answer_ids, encode_prompts


class SuppressionOptions(BaseModel):
    """Options of ``knowledge-neurons``."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    factor: float = Field(0.0, ge=0, allow_inf_nan=False)
    """What the neurons' activations are multiplied by: 0 is silent, 2 is louder."""
    steps: int = Field(20, ge=1)
    """Steps of the integral that attributes the answer to neurons."""
    threshold: float = Field(0.2, ge=0, lt=1)
    """Share of the largest attribution above which a neuron counts in a wording."""
    share: float = Field(0.7, gt=0, le=1)
    """Share of the wordings that a neuron must count in."""


def draft_suppression(
    context: EditContext, facts: Sequence[EncodedFact], options: SuppressionOptions
) -> Draft:
    """Factors for the neurons that the old answer of a fact is owed to.

    The neurons are looked for in all layers without experts, in the fact's prompt and its
    paraphrases. The site of the context is not used.
    """
    loaded = context.loaded
    layers = _linear_layers(loaded)
    recipe = NeuronRecipe(options.steps, options.threshold, options.share, layers)
    chosen: dict[int, set[int]] = {}
    failures: dict[int, str] = {}
    for number, fact in enumerate(facts):
        try:
            found = find_neurons(loaded, _wordings(context, fact), recipe)
        except EditError as error:
            failures[number] = str(error)
            continue
        if not found.neurons:
            failures[number] = (
                f"no neuron counts in {options.share:g} of its {len(found.prompts)} wordings; "
                "lower the share or the threshold."
            )
        for layer, units in found.chosen.items():
            chosen.setdefault(layer, set()).update(units)
        context.advance(1)
    tensors = {}
    for layer, all_units in chosen.items():
        factors = torch.ones(unit_counts(loaded.model, layer)["mlp.neurons"])
        factors[sorted(all_units)] = options.factor
        tensors[f"{_site(loaded, layer)}/factor_in"] = factors
    return Draft("ia3", tensors, failures=failures)


def _linear_layers(loaded: LoadedModel) -> tuple[int, ...]:
    model = loaded.model
    found = [n for n in range(layers_of(model)) if ffn_row_of(model, n).form != "moe_gated"]
    if not found:
        raise EditError(
            f"neurons of {loaded.name or 'the model'} were to be changed by factors, but all "
            f"{layers_of(model)} layers have experts, which no factor can reach; take another "
            "method, such as grace."
        )
    return tuple(found)


def _site(loaded: LoadedModel, layer: int) -> str:
    return part_of(loaded.model, "mlp.down", layer).module


def _wordings(context: EditContext, fact: EncodedFact) -> list[Recall]:
    """The fact's prompt and its paraphrases, with the old answer."""
    if not fact.true:
        raise EditError(
            f"the neurons behind the old answer of {fact.fact.id!r} were asked for, but it names "
            "none; give target_true."
        )
    loaded, told, raw = context.loaded, fact.fact, context.raw
    found = [recall_fact(loaded, fact, "true")]
    for text in told.paraphrases:
        if told.subject in text:
            prompt = encode_prompts(loaded, [text], told.subject, raw=raw)[0]
            answer = answer_ids(loaded, text, told.target_true, raw=raw)
            found.append(Recall(told.id, text, told.subject, prompt, answer))
    return found
