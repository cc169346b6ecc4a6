"""Covariances: the mean of outer products, from folders that are of the right base."""

from pathlib import Path

import pytest
import torch

from brickwork.errors import EditError, UnknownNameError
from brickwork.measure.merge_statistics import (
    Measurement,
    collect_statistics,
    open_statistics,
    statistics_bytes,
)
from brickwork.model.load import LoadedModel, wrap_model
from brickwork.model.parts import part_of
from brickwork.model.train import Encoded
from brickwork.update.contexts import Placed
from brickwork.update.covariance import Corpus, measure_covariance, open_covariance
from brickwork.update.keys import recall
from tests.tiny import tiny_model, tiny_tokenizer

TEXTS = [Encoded([5, 9, 13, 7], 4), Encoded([21, 3, 40], 3), Encoded([17, 6, 30, 11, 90], 5)]
CORPUS = Corpus(TEXTS, "texts", "0" * 64)


def loaded_model(family: str = "llama", seed: int = 0) -> LoadedModel:
    return wrap_model(tiny_model(family, seed), tiny_tokenizer(), family)


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "phi3", "qwen3_moe"])
def test_the_matrix_is_the_mean_of_outer_products_of_the_keys(family: str, tmp_path: Path) -> None:
    loaded = loaded_model(family)
    covariance, about = measure_covariance(loaded, CORPUS, [0], tmp_path)
    places = [Placed(tuple(text.ids), n) for text in TEXTS for n in range(len(text.ids))]
    keys = recall(loaded.model, places, 0).keys
    assert (covariance(0).tokens, about.tokens, about.data) == (12, 12, "texts")
    # Float32 sums in another order.
    torch.testing.assert_close(covariance(0).matrix, keys.T @ keys / 12, rtol=1e-4, atol=1e-5)


def test_what_was_measured_is_not_measured_again(tmp_path: Path) -> None:
    loaded, read = loaded_model(), []
    first, about = measure_covariance(loaded, CORPUS, [1], tmp_path, advance=read.append)
    assert sum(read) == 3
    again, same = measure_covariance(loaded, CORPUS, [1], tmp_path, advance=read.append)
    assert (sum(read), about) == (3, same)
    assert torch.equal(first(1).matrix, again(1).matrix)
    both, other = measure_covariance(loaded, CORPUS, [0, 1], tmp_path, advance=read.append)
    assert sum(read) == 6
    assert torch.equal(both(1).matrix, first(1).matrix)
    assert other.sha256 != about.sha256
    _, seeded = measure_covariance(
        loaded, Corpus(TEXTS, "texts", "0" * 64, tokens=4, seed=1), [0, 1], tmp_path
    )
    assert seeded.tokens < 12
    with pytest.raises(EditError, match=r"covariance of layer 0 .* --site layers\.0\.mlp\.down"):
        first(0)


def test_a_folder_of_all_maps_serves_edits_of_any_layer(tmp_path: Path) -> None:
    loaded = loaded_model("gpt2")
    collect_statistics(loaded, TEXTS, Measurement("gram", data="d"), tmp_path / "all")
    covariance, about = open_covariance(tmp_path / "all", loaded)
    measured, _ = measure_covariance(loaded, CORPUS, [0, 1], tmp_path / "home")
    assert about.sha256 == open_statistics(tmp_path / "all").spec.sha256
    for layer in (0, 1):
        assert torch.equal(covariance(layer).matrix, measured(layer).matrix)


def test_statistics_of_another_base_or_kind_or_layer_are_refused(tmp_path: Path) -> None:
    loaded = loaded_model()
    one = Measurement("gram", sites=("layers.1.mlp.down",))
    collect_statistics(loaded, TEXTS, one, tmp_path / "one")
    covariance, _ = open_covariance(tmp_path / "one", loaded)
    assert covariance(1).matrix.shape == (48, 48)
    with pytest.raises(EditError, match=r"layer 0 was asked .*--site layers\.0\.mlp\.down"):
        covariance(0)
    with pytest.raises(
        EditError, match=r"are of the base 'llama' .* measure them on it: brickwork"
    ):
        open_covariance(tmp_path / "one", loaded_model(seed=1))
    collect_statistics(loaded, TEXTS, Measurement("fisher"), tmp_path / "fisher")
    with pytest.raises(EditError, match="holds 'fisher'"):
        open_covariance(tmp_path / "fisher", loaded)
    with pytest.raises(EditError, match="no statistics can be read"):
        open_covariance(tmp_path / "none", loaded)
    with pytest.raises(EditError, match="one of experts"):
        measure_covariance(loaded_model("mixtral"), CORPUS, [0], tmp_path / "home")


def test_some_sites_take_the_room_of_their_matrices_alone(tmp_path: Path) -> None:
    loaded = loaded_model()
    site = loaded.base.sites[part_of(loaded.model, "mlp.down", 1).module].address
    assert statistics_bytes(loaded.model, "gram", [site]) == 4 * 48 * 48
    spec = collect_statistics(loaded, TEXTS, Measurement("gram", sites=(site,)), tmp_path / "s")
    found = open_statistics(tmp_path / "s")
    assert found.names == ["model.layers.1.mlp.down_proj.weight"]
    assert spec.sites == (site,)
    with pytest.raises(UnknownNameError, match=r"did you mean 'layers\.1\.mlp\.down'"):
        statistics_bytes(loaded.model, "gram", ["layers.1.mlp.dow"])
