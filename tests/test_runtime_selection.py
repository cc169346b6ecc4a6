"""Part of the base at work: equal to a base from which the rest was taken, and never computed."""

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from brickwork.brick.address import Address
from brickwork.brick.brick import Brick
from brickwork.brick.configuration import Configuration, Options
from brickwork.brick.effects import Route
from brickwork.brick.spec import BrickSpec, Function
from brickwork.errors import ConfigurationError
from brickwork.measure.ablation import silencing_heads, skipping
from brickwork.model.ffn import FFN, ffn_of
from brickwork.model.load import LoadedModel, wrap_model
from brickwork.model.parts import role_path
from brickwork.model.slices import slices_at
from brickwork.model.taps import output_norms, tapped
from brickwork.runtime import selection
from brickwork.runtime.auto import Selector
from brickwork.runtime.configured import ConfiguredModel
from brickwork.runtime.ffn_selection import FfnSelection, Spans
from brickwork.runtime.score import answer_losses
from brickwork.runtime.sparse_ffn import SparsePolicy
from brickwork.store.store import Store
from tests.bricks import random_brick
from tests.served import loaded, random_prompts, using
from tests.tiny import FAMILIES, silence, tiny_model

PROMPT = [5, 9, 2, 40, 7, 7, 31]
EXPERTS = {"mixtral", "qwen3_moe"}
DENSE = [family for family in FAMILIES if family not in EXPERTS]
every_family = pytest.mark.parametrize("family", FAMILIES)
dense_family = pytest.mark.parametrize("family", DENSE)


def brick(
    base: LoadedModel, form: str, slots: dict[str, dict[str, Tensor]], **options: object
) -> Brick:
    """A brick of that form with these slots at each address."""
    paths = {site.address: site.path for site in base.base.sites.values()}
    sites = {paths[address]: own for address, own in slots.items()}
    spec = BrickSpec(
        name=form, form=form, base=base.base.fingerprint, sites=tuple(sites),
        options=options, origin="emergent", granularity="group",
    )  # fmt: skip
    tensors = {f"{path}/{slot}": t for path, own in sites.items() for slot, t in own.items()}
    return Brick(spec, tensors)


def serving(base: LoadedModel, **bricks: Brick) -> ConfiguredModel:
    model = ConfiguredModel(base)
    for name, one in bricks.items():
        model.add(one, name)
    return model


def half(size: int, seed: int = 0) -> Tensor:
    """A random half is kept."""
    kept = torch.zeros(size)
    kept[torch.randperm(size, generator=torch.Generator().manual_seed(seed))[: size // 2]] = 1
    return kept


def ffn_address(base: LoadedModel, layer: int) -> str:
    addresses = {site.address for site in base.base.sites.values()}
    down = f"layers.{layer}.mlp.down"
    return down if down in addresses else f"layers.{layer}.mlp.experts"


def width_at(base: LoadedModel, address: str) -> int:
    (site,) = [site for site in base.base.sites.values() if site.address == address]
    return site.sizes["in"]


def bare(base: LoadedModel, prompt: list[int] = PROMPT) -> Tensor:
    with torch.no_grad():
        found: Tensor = base.model(torch.tensor([prompt])).logits[0]
    return found


def close(found: Tensor, expected: Tensor) -> None:
    # float32: sums over fewer terms, or in another order, which differs between processors.
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=2e-5)


@every_family
def test_masked_neurons_are_as_if_their_weights_were_zero(family: str) -> None:
    base, without = loaded(family), tiny_model(family)
    slots = {}
    for layer in (0, 1):
        address = ffn_address(base, layer)
        keep = half(width_at(base, address), seed=layer)
        slots[address] = {"keep": keep}
        off = tuple((keep == 0).nonzero().flatten().tolist())
        silence(without, slices_at(without, Address(layer, "mlp.neurons", off)))
    (found,) = serving(base, half=brick(base, "mask", slots)).logits([PROMPT], [using("half")])
    with torch.no_grad():
        close(found, without(torch.tensor([PROMPT])).logits[0])


@every_family
def test_masked_heads_are_silent(family: str) -> None:
    base = loaded(family)
    o = "layers.1.attn.o"
    keep = torch.tensor([1.0, 0.0, 1.0, 0.0]).repeat_interleave(width_at(base, o) // 4)
    model = serving(base, half=brick(base, "mask", {o: {"keep": keep}}))
    (found,) = model.logits([PROMPT], [using("half")])
    with tapped(base.model, heads=silencing_heads({1: torch.tensor([1, 3])})):
        close(found, bare(base))


def test_masks_of_one_row_keep_what_any_of_them_keeps() -> None:
    base = loaded("llama")
    one, other = half(48, 1), half(48, 2)
    down = "layers.0.mlp.down"
    masks = {
        "one": brick(base, "mask", {down: {"keep": one}}),
        "other": brick(base, "mask", {down: {"keep": other}}),
        "both": brick(base, "mask", {down: {"keep": torch.maximum(one, other)}}),
    }
    model = serving(base, **masks)
    separate, joined = model.logits([PROMPT] * 2, [using("one,other"), using("both")])
    close(separate, joined)


@every_family
def test_a_skipped_block_hands_on_what_it_gets_and_is_not_computed(family: str) -> None:
    base = loaded(family)
    model = serving(base, skip=brick(base, "skip", {"layers.1": {"share": torch.ones(1)}}))
    calls = [0]
    module = base.model.get_submodule(role_path(base.model, "attn", 1) or "")
    handle = module.register_forward_hook(lambda *_: calls.__setitem__(0, calls[0] + 1))
    (found,) = model.logits([PROMPT], [using("skip")])
    mixed = model.logits([PROMPT] * 2, [using("skip"), using("")])
    handle.remove()
    # Gemma's two layers see other windows, and each kind needs one layer's cache to count by.
    kinds = getattr(base.model.config, "layer_types", None) or ["same", "same"]
    assert calls[0] == (1 if kinds[0] == kinds[1] else 2)
    with tapped(base.model, blocks=skipping([1])):
        close(found, bare(base))
    close(mixed[0], found)
    close(mixed[1], bare(base))


@dense_family
def test_a_skipped_block_is_skipped_while_a_row_generates(family: str) -> None:
    base = loaded(family)
    model = serving(base, skip=brick(base, "skip", {"layers.1": {"share": torch.ones(1)}}))
    prompts = random_prompts([5, 3])
    rows = [using("skip", max_new_tokens=6), using("", max_new_tokens=6)]
    mixed = model.generate(prompts, rows)
    assert model.generate(prompts[:1], rows[:1])[0].tokens == mixed[0].tokens
    with tapped(base.model, blocks=skipping([1])):
        expected = model.generate(prompts[:1], [using("", max_new_tokens=6)])
    assert mixed[0].tokens == expected[0].tokens


def test_half_a_skip_is_half_the_work() -> None:
    base = loaded("llama")
    model = serving(base, skip=brick(base, "skip", {"layers.1": {"share": torch.ones(1)}}))
    (found,) = model.logits([PROMPT], [using("skip:0.5")])
    with tapped(base.model, blocks={1: lambda before, after: (before + after) / 2}):
        close(found, bare(base))


def test_a_block_that_is_left_out_is_computed_where_another_brick_reads_what_it_says() -> None:
    base, draw = loaded("llama"), torch.Generator().manual_seed(3)
    weights = torch.randn(2, 32, generator=draw)
    slots = {"key": weights[:1], "bias": torch.zeros(1), "value": weights[1:]}
    model = serving(
        base,
        skip=brick(base, "skip", {"layers.1": {"share": torch.ones(1)}}),
        patch=brick(base, "patch", {"layers.1": slots}),
        far=brick(base, "codebook", {"layers.1": slots_far_from_all(32)}),
    )
    found = model.logits([PROMPT] * 2, [using("skip,patch"), using("skip,far")])
    for logits, strength in zip(found, (1, 0), strict=True):

        def tap(before: Tensor, after: Tensor, *, strength: int = strength) -> Tensor:
            return before + strength * (after @ weights[0]).relu().unsqueeze(-1) * weights[1]

        with tapped(base.model, blocks={1: tap}):
            close(logits, bare(base))


def slots_far_from_all(hidden: int) -> dict[str, Tensor]:
    key = torch.full((1, hidden), 1e4)
    return {"key": key, "value": key, "radius": torch.ones(1)}


def test_two_bricks_that_skip_a_block_skip_it_once() -> None:
    base = loaded("llama")
    one, other = (
        brick(base, "skip", {"layers.1": {"share": torch.tensor([share])}}) for share in (1.0, 0.5)
    )
    model = serving(base, one=one, same=one, other=other)
    (expected,) = model.logits([PROMPT], [using("one")])
    for bricks in ("one,same", "other,one"):
        assert torch.equal(model.logits([PROMPT], [using(bricks)])[0], expected)
    (quarter,) = model.logits([PROMPT], [using("other,other:0.5")])
    with tapped(base.model, blocks={1: lambda before, after: before + 3 / 8 * (after - before)}):
        close(quarter, bare(base))


def exit_at(base: LoadedModel, confidence: float) -> Brick:
    return brick(base, "exit", {"layers.0": {"confidence": torch.tensor([confidence])}})


@every_family
def test_an_exit_tells_the_next_token_from_the_state_of_its_block(family: str) -> None:
    base = loaded(family)
    (found,) = serving(base, out=exit_at(base, 0.0)).logits([PROMPT], [using("out")])
    close(found[:-1], bare(base)[:-1])  # only the last position tells a new token
    with tapped(base.model, blocks=skipping([1])):
        close(found[-1], bare(base)[-1])


@dense_family
def test_who_leaves_early_generates_the_same_in_any_batch_and_skips_ffns(family: str) -> None:
    base = loaded(family)
    model, prompts = serving(base, out=exit_at(base, 0.0)), random_prompts([5, 3])
    leaving, staying = using("out", max_new_tokens=5), using("", max_new_tokens=5)
    mlp = role_path(base.model, "mlp", 1)
    inner = [name for name, _ in base.model.named_modules() if mlp and name.startswith(f"{mlp}.")]
    calls = [0]
    handles = [
        base.model.get_submodule(name).register_forward_hook(
            lambda *_: calls.__setitem__(0, calls[0] + 1)
        )
        for name in inner
    ]
    (alone,) = model.generate(prompts[:1], [leaving])
    for handle in handles:
        handle.remove()
    assert calls[0] == len(inner)  # by the prompt alone
    mixed = model.generate(prompts, [leaving, staying])
    assert mixed[0].tokens == alone.tokens
    assert alone.blocks == (1,) * len(alone.tokens)
    assert mixed[1].blocks == (2,) * len(mixed[1].tokens)
    assert mixed[1].tokens == model.generate(prompts[1:], [staying])[0].tokens


@pytest.mark.parametrize("address", ["final_norm", "unembed"])
def test_an_exit_asks_with_what_its_row_adds_before_the_output(address: str) -> None:
    base = loaded("llama")
    size = {"final_norm": 32, "unembed": 112}[address]
    draw = torch.Generator().manual_seed(1)
    loud = brick(base, "bias", {address: {"bias": 2 * torch.randn(size, generator=draw)}})
    model = serving(base, out=exit_at(base, 0.3), loud=loud)
    rows = [using(bricks, max_new_tokens=6) for bricks in ("out,loud", "loud", "out", "")]
    prompts = random_prompts([5, 3, 6, 4])
    mixed = model.generate(prompts, rows)
    for prompt, row, found in zip(prompts, rows, mixed, strict=True):
        (alone,) = model.generate([prompt], [row])
        assert (found.tokens, found.blocks) == (alone.tokens, alone.blocks)
    assert 1 in mixed[0].blocks, "the bias makes it sure"
    assert set(mixed[2].blocks) == {2}


@pytest.mark.parametrize("inner", [16, 32])
def test_an_exit_of_an_opt_model_whose_norms_come_after_its_blocks(inner: int) -> None:
    """It has no last norm; OPT-350m also projects its states before the output."""
    config = FAMILIES["opt"]()
    config.update({"do_layer_norm_before": False, "word_embed_proj_dim": inner})
    base = wrap_model(AutoModelForCausalLM.from_config(config).eval())
    model = serving(base, out=exit_at(base, 0.0))
    if inner == 16:
        with pytest.raises(ConfigurationError, match="projects its 32 hidden channels to 16"):
            model.logits([PROMPT], [using("out")])
        return
    (found,) = model.logits([PROMPT], [using("out")])
    with tapped(base.model, blocks=skipping([1])):
        close(found[-1], bare(base)[-1])


def test_nobody_leaves_an_exit_that_asks_for_certainty() -> None:
    base = loaded("llama")
    (found,) = serving(base, out=exit_at(base, 1.0)).logits([PROMPT], [using("out")])
    close(found, bare(base))


def router(base: LoadedModel, level: str, density: float = 0.25) -> Brick:
    slots = {f"layers.{n}.mlp.down": {"magnitude": output_norms(base.model, n)} for n in (0, 1)}
    return brick(base, "router", slots, density=density, level=level)


@dense_family
def test_a_router_keeps_the_strongest_neurons_of_each_token(family: str) -> None:
    base = loaded(family)
    (found,) = serving(base, strong=router(base, "token")).logits([PROMPT], [using("strong")])

    def strongest(layer: int) -> object:
        norms = output_norms(base.model, layer)

        def tap(h: Tensor, _routed: object) -> Tensor:
            best = (h.abs() * norms).topk(h.shape[1] // 4).indices
            return torch.zeros_like(h).scatter(1, best, h.gather(1, best))

        return tap

    with tapped(base.model, neurons={n: strongest(n) for n in (0, 1)}):  # type: ignore[misc]
        close(found, bare(base))


@dense_family
def test_a_choice_by_prompt_is_made_once_and_holds_for_the_answer(family: str) -> None:
    base = loaded(family)
    model = serving(base, prompt=router(base, "prompt"))
    answer = [3, 17, 60]
    (losses,) = answer_losses(model, [(PROMPT, answer)], [using("prompt")])
    norms = [output_norms(base.model, n) for n in (0, 1)]

    def by_hand(layer: int) -> object:
        def tap(h: Tensor, _routed: object) -> Tensor:
            said = torch.nn.functional.normalize(h[: len(PROMPT)] * norms[layer], dim=-1)
            best = said.norm(dim=0).topk(h.shape[1] // 4).indices
            kept = torch.zeros(h.shape[1]).index_fill(0, best, 1)
            return torch.cat([h[: len(PROMPT) - 1], h[len(PROMPT) - 1 :] * kept])

        return tap

    with tapped(base.model, neurons={n: by_hand(n) for n in (0, 1)}):  # type: ignore[misc]
        logits = bare(base, [*PROMPT, *answer])
    expected = torch.nn.functional.cross_entropy(
        logits[len(PROMPT) - 1 : -1], torch.tensor(answer), reduction="none"
    )
    close(losses, expected)
    rows, prompts = [using("prompt", max_new_tokens=5)] * 2, random_prompts([7, 3])
    mixed = model.generate(prompts, rows)
    for prompt, row, found in zip(prompts, rows, mixed, strict=True):
        assert model.generate([prompt], [row])[0].tokens == found.tokens


@pytest.fixture
def _always_sparse(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = SparsePolicy({1: 2.0, 16: 2.0})
    monkeypatch.setattr(selection, "crossover", lambda _records: policy)


@contextmanager
def counted(base: LoadedModel, layer: int) -> Iterator[list[int]]:
    """How often the FFN of a layer was computed whole."""
    calls = [0]
    down = base.model.get_submodule(
        next(s.path for s in base.base.sites.values() if s.address == f"layers.{layer}.mlp.down")
    )
    handle = down.register_forward_hook(lambda *_: calls.__setitem__(0, calls[0] + 1))
    try:
        yield calls
    finally:
        handle.remove()


def gate_threshold(base: LoadedModel) -> Brick:
    """Neurons whose gate (or activation, without one) is above 0.1 in size."""
    slots = {f"layers.{n}.mlp.down": {"quantiles": torch.full((3,), 0.1)} for n in (0, 1)}
    return brick(base, "router", slots, density=0.5)


@dense_family
def test_a_threshold_looks_at_the_gate_alone(family: str) -> None:
    base = loaded(family)
    (found,) = serving(base, loud=gate_threshold(base)).logits([PROMPT], [using("loud")])
    seen: dict[int, Tensor] = {}

    def loud(layer: int) -> object:
        ffn = ffn_of(base.model, layer)
        assert isinstance(ffn, FFN)
        gate, bias = (ffn.up, ffn.up_bias) if ffn.gate is None else (ffn.gate, ffn.gate_bias)

        def tap(h: Tensor, _routed: object) -> Tensor:
            said = ffn.activation(torch.nn.functional.linear(seen[layer], gate, bias))
            return h * (said.abs() > 0.1)

        return tap

    inputs = {n: lambda x, n=n: seen.__setitem__(n, x) for n in (0, 1)}
    with tapped(base.model, inputs=inputs, neurons={n: loud(n) for n in (0, 1)}):  # type: ignore[arg-type, misc]
        close(found, bare(base))


ROWS = ("half", "groups", "prompt", "half,groups", "loud", "")


def selections(base: LoadedModel) -> dict[str, Brick]:
    draw = torch.Generator().manual_seed(4)
    downs = [f"layers.{n}.mlp.down" for n in (0, 1)]
    owner = torch.arange(48).remainder(7) - 1.0
    linear = {a: {"owner": owner, "weight": torch.randn(6, 32, generator=draw)} for a in downs}
    return {
        "half": brick(base, "mask", {a: {"keep": half(48, n)} for n, a in enumerate(downs)}),
        "groups": brick(base, "router", linear, density=0.4),
        "prompt": router(base, "prompt"),
        "loud": gate_threshold(base),
    }


@pytest.mark.usefixtures("_always_sparse")
@dense_family
def test_a_packed_model_says_the_same_and_computes_no_ffn_whole_to_say_it(family: str) -> None:
    base = loaded(family)
    model = serving(base, **selections(base))
    prompts = random_prompts([6, 3, 5, 4, 7, 5])
    rows = [using(bricks, max_new_tokens=5) for bricks in ROWS]
    whole = [model.generate([p], [r])[0].tokens for p, r in zip(prompts, rows, strict=True)]
    before = {name: p.clone() for name, p in base.model.named_parameters()}
    with model.packed():
        for prompt, row, expected in zip(prompts, rows, whole, strict=True):
            with counted(base, 1) as calls:
                (found,) = model.generate([prompt], [row])
            assert found.tokens == expected
            sparse = row.bricks and role_path(base.model, "mlp", 1) is not None
            assert calls[0] == (1 if sparse else len(expected))  # by the prompt, or by every token
        assert [a.tokens for a in model.generate(prompts[:5], rows[:5])] == whole[:5]
    assert all(torch.equal(p, before[name]) for name, p in base.model.named_parameters())


@pytest.mark.usefixtures("_always_sparse")
def test_an_ffn_where_another_brick_acts_is_computed_whole() -> None:
    base = loaded("llama")
    draw = torch.Generator().manual_seed(0)
    lora = random_brick("lora", base.base, draw, sites=["model.layers.1.mlp.up_proj"])
    model = serving(base, lora=lora, **selections(base))
    prompts, rows = random_prompts([5]), [using("half,lora", max_new_tokens=4)]
    (expected,) = model.generate(prompts, rows)
    with model.packed(), counted(base, 1) as busy, counted(base, 0) as free:
        assert model.generate(prompts, rows)[0].tokens == expected.tokens
    assert busy[0] == len(expected.tokens)
    assert free[0] == 1


@pytest.mark.usefixtures("_always_sparse")
def test_an_ffn_with_masked_inputs_is_computed_whole() -> None:
    base = loaded("llama")
    inner = {f"layers.0.mlp.{role}": {"keep": half(32, 3)} for role in ("gate", "up")}
    mask = brick(base, "mask", {**inner, "layers.0.mlp.down": {"keep": half(48)}})
    model = serving(base, mask=mask)
    prompts, rows = random_prompts([5]), [using("mask", max_new_tokens=4)]
    (expected,) = model.generate(prompts, rows)
    with model.packed(), counted(base, 0) as busy:
        assert model.generate(prompts, rows)[0].tokens == expected.tokens
    assert busy[0] == len(expected.tokens)


def test_a_router_with_two_names_in_a_row_leaves_other_rows_alone() -> None:
    base = loaded("llama")
    own = router(base, "token")
    model = serving(base, one=own, other=own)
    routed, whole = model.logits([PROMPT] * 2, [using("one,other"), using("")])
    close(whole, bare(base))
    close(routed, model.logits([PROMPT], [using("one")])[0])


def test_what_a_router_has_read_is_let_go() -> None:
    base = loaded("llama")
    own = [Route("model.layers.0.mlp.down_proj", {"quantiles": torch.ones(2)}, 0.5, "token")]
    chooser = FfnSelection(None, [own], Spans([3], [1]), ffn_of(base.model, 0))
    x, h = torch.randn(3, 32), torch.randn(3, 48)
    read = weakref.ref(x)
    chooser.see(x)
    chooser.tap(h, None)
    del x
    assert read() is None


@pytest.mark.parametrize("told", [[1], [1, 0], [1, 1, 1]])
def test_what_is_told_is_told_for_each_row(told: list[int]) -> None:
    with pytest.raises(ConfigurationError, match=r"2 prompts, of which .* give a number from 1"):
        serving(loaded("llama")).logits([PROMPT] * 2, [using("")] * 2, told=told)


def test_a_plan_says_what_is_saved() -> None:
    base = loaded("llama")
    model = serving(
        base,
        skip=brick(base, "skip", {"layers.1": {"share": torch.ones(1)}}),
        out=exit_at(base, 0.5),
        **selections(base),
    )

    def saved(name: str) -> int:
        return -model.plan([using(name)]).rows[0].bricks[0].flops

    ffns = 2 * 2 * 3 * 32 * 48  # two layers of three maps
    assert saved("half") == ffns // 2
    assert saved("prompt") == ffns * 3 // 4
    # 40 % of 48 neurons are 19; the router's own 6 groups take 32 multiply-adds each.
    assert saved("groups") == pytest.approx(ffns * 0.6 - 2 * 2 * 6 * 32, rel=0.02)
    assert saved("skip") == 2 * (3 * 32 * 48 + 2 * 32 * 32 + 2 * 32 * 16)
    assert saved("skip:0.5") == 0  # computed whole, and added in part
    assert saved("out") == -2 * 32 * 112
    assert model.plan([Configuration()]).rows[0].bricks == ()


def test_a_skipped_block_saves_the_experts_that_a_token_would_have_visited() -> None:
    base = loaded("mixtral")
    model = serving(base, skip=brick(base, "skip", {"layers.1": {"share": torch.ones(1)}}))
    attention, experts = 2 * 32 * 32 + 2 * 32 * 16, 2 * 3 * 32 * 48
    assert model.plan([using("skip")]).rows[0].bricks[0].flops == -2 * (attention + experts)


def test_what_keeps_a_part_of_the_base_or_is_only_read_is_never_retrieved(tmp_path: Path) -> None:
    base = loaded("llama")
    function = Function(text="add numbers", exemplars=("what is one and two", "add three to four"))
    with Store.open(tmp_path / "store") as store:
        for one in (
            selections(base)["half"],
            random_brick("replay", base.base, torch.Generator().manual_seed(0), name="kept"),
            random_brick("lora", base.base, torch.Generator().manual_seed(0), name="sums"),
        ):
            store.add(Brick(one.spec.model_copy(update={"function": function}), one.tensors))
        found = Selector(base, store).select("add one and two", Options(), "llama")
    assert [hit.reference for hit in found.retrieval.hits] == ["sums@1"]
