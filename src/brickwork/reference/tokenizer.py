"""The reference model's tokenizer: byte-level BPE, trained on the model's own training data."""

from collections.abc import Iterable, Sequence

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from brickwork.measure.instances import Instance
from brickwork.model.train import Encoded
from brickwork.reference.corpus import ASSISTANT, END, PAD, USER, as_text

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}<|assistant|>{{ message['content'] }}<|endoftext|>"
    "{% else %}<|user|>{{ message['content'] }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def train_tokenizer(texts: Iterable[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of the given vocabulary size, special tokens included."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END, PAD, USER, ASSISTANT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END,
        eos_token=END,
        pad_token=PAD,
        extra_special_tokens=[USER, ASSISTANT],
        model_max_length=1024,
    )
    wrapped.chat_template = CHAT_TEMPLATE
    return wrapped


def encode_instances(
    tokenizer: PreTrainedTokenizerBase, instances: Sequence[Instance], longest: int
) -> list[Encoded]:
    """Instances as token ids, cut at ``longest``; those whose response is cut away are left out."""
    prompts = tokenizer([as_text(i.prompt) for i in instances])["input_ids"]
    responses = tokenizer([i.response + END for i in instances])["input_ids"]
    pairs = zip(prompts, responses, strict=True)
    return [Encoded((p + r)[:longest], len(p)) for p, r in pairs if len(p) + 2 <= longest]


def encode_texts(
    tokenizer: PreTrainedTokenizerFast, texts: Iterable[str], length: int
) -> list[Encoded]:
    """Plain text cut into pieces of ``length`` tokens, each after an end-of-text token."""
    pieces: list[Encoded] = []
    end = tokenizer.eos_token_id
    for text in texts:
        ids = tokenizer(text)["input_ids"]
        for start in range(0, len(ids), length - 1):
            piece = [end, *ids[start : start + length - 1]]
            pieces.append(Encoded(piece, len(piece)))
    return [piece for piece in pieces if len(piece.ids) >= 16]
