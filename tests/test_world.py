"""The world model knows its world, so what an edit changes is what the edit did."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from brickwork.update.words import encode_fact
from tests.world import FOLDER, accuracy, corpus, facts, main, new_tokenizer, world

# A fact that the model does not know cannot show whether an edit spared it.
KNOWN = 0.95


def test_the_shipped_model_knows_the_wordings_that_it_never_saw() -> None:
    model = AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(FOLDER)
    assert accuracy(model, tokenizer, held_out=True) >= KNOWN
    assert accuracy(model, tokenizer, held_out=False) >= 0.99


def test_the_shipped_files_are_small() -> None:
    # every copy of the history holds them
    assert sum(p.stat().st_size for p in FOLDER.iterdir()) < 3e6


def test_the_shipped_tokenizer_is_the_one_of_this_file() -> None:
    shipped = AutoTokenizer.from_pretrained(FOLDER)
    assert shipped.get_vocab() == new_tokenizer().get_vocab()
    assert shipped.chat_template is None


def test_every_pair_of_names_has_one_object_of_each_relation() -> None:
    assert len({(f.subject, f.relation) for f in facts()}) == len(facts()) == 64 * 5
    assert all(len({f.prompt, *f.paraphrases}) == 6 for f in facts())


def test_no_text_states_a_fact_in_a_wording_that_is_held_out() -> None:
    texts = corpus(2000)
    stated = {f"{prompt} {f.object} ." for f in facts() for prompt in f.held_out}
    assert not [t for t in texts if any(t.endswith(s) for s in stated)]
    assert texts == corpus(2000)
    words = new_tokenizer()
    assert words.unk_token_id not in {i for ids in words(texts).input_ids for i in ids}


def test_edits_are_about_different_subjects_and_their_neighbours_say_something_else() -> None:
    here = world()
    edits = here.edits(12, seed=3)
    assert edits == here.edits(12, seed=3) != here.edits(12, seed=4)
    assert len({e.subject for e in edits}) == 12
    prompts = {e.prompt for e in edits}
    for edit in edits:
        assert edit.target != edit.target_true
        assert len(edit.neighbours) == 10
        assert not prompts & {p.prompt for p in (*edit.neighbours, *edit.same_subject)}
        assert not {edit.target, edit.target_true} & {p.answer for p in edit.neighbours}
        assert len(encode_fact(here.loaded, edit).target) == 1


@pytest.mark.slow
def test_training_again_gives_a_model_that_knows_as_much(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.world.FOLDER", tmp_path)
    main()
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    assert accuracy(model, AutoTokenizer.from_pretrained(tmp_path), held_out=True) >= KNOWN
