"""Address: it reads back what it writes, and refuses what names no part."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from brickwork.brick.address import Address
from brickwork.errors import AddressError, BrickworkError

roles = st.from_regex(r"[a-z_][a-z0-9_]{0,7}(\.[a-z_][a-z0-9_]{0,7}){0,2}", fullmatch=True)
units = st.lists(st.integers(0, 999_999_999), max_size=8, unique=True).map(tuple)
layers = st.integers(0, 999_999_999)
addresses = st.one_of(
    st.builds(Address, layer=layers),
    st.builds(Address, layer=layers, part=roles, units=units),
    st.builds(Address, part=st.sampled_from(["embed", "unembed", "final_norm"]), units=units),
)


@given(addresses)
def test_reads_back_what_it_writes(address: Address) -> None:
    assert Address.parse(str(address)) == address


@given(st.text(max_size=40) | st.text(alphabet="layers.0123456789[],-mlp \n", max_size=30))
def test_any_text_is_an_address_or_is_refused(text: str) -> None:
    with contextlib.suppress(AddressError):
        address = Address.parse(text)
        assert Address.parse(str(address)) == address


@pytest.mark.parametrize(
    ("text", "units"),
    [
        ("layers.3.attn.heads[4-7]", (4, 5, 6, 7)),
        ("layers.3.mlp.neurons[9, 2-3]", (9, 2, 3)),
        ("layers.0.mlp.neurons[5-5]", (5,)),
    ],
)
def test_a_range_counts_both_ends(text: str, units: tuple[int, ...]) -> None:
    assert Address.parse(text).units == units


@pytest.mark.parametrize(
    "text",
    [
        "", "layers", "layers.", "layers.x", "layers.-1", "layers.3.", "layers.3..mlp",
        "layers.3.mlp.", ".embed", "attn.q", "[3]", "layers.3[4]", "layers.3.attn.heads[]",
        "layers.3.attn.heads[1,]", "layers.3.attn.heads[1][2]", "layers.3.attn.heads[a]",
        "layers.3.attn.heads[1", "layers.3.Attn", "layers.3.attn q", "layers.3\n", "embed.x",
        "layers.٣", "layers.3.attn.heads[٣]", "layers.3/../4", "layers." + "9" * 5000,
    ],
)  # fmt: skip
def test_refuses_what_names_no_part(text: str) -> None:
    with pytest.raises(AddressError):
        Address.parse(text)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("layer.3", "is not an address; write for example"),
        ("attn.q", "names no layer; only embed, unembed"),
        ("layers.1.mlp.neurons[x]", "'x' is neither a number nor a range like 4-7"),
        ("layers.1.mlp.neurons[7-4]", "the range '7-4' has no units"),
        ("layers.1.mlp.neurons[1,3,1]", "names a unit twice"),
        ("layers.1.mlp.neurons[0-99999999]", "names more than 1,000,000 units"),
        ("layers.1.mlp.neurons[0-600000,600001-1200000]", "names more than 1,000,000 units"),
    ],
)
def test_says_why_it_refuses(text: str, reason: str) -> None:
    with pytest.raises(BrickworkError) as refusal:
        Address.parse(text)
    assert reason in str(refusal.value)
