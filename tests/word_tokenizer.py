"""Makes a tokenizer of twenty words, one token each."""

from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedTokenizerFast

WORDS = ["<pad>", "<bos>", "<eos>", "<unk>", "Human", "Assistant", "System", ":", "user", "assistant", *"abcdefghij"]
TEMPLATE = (
    "{% for m in messages %}{{ m.role }} : {{ m.content }} {% endfor %}"
    "{% if add_generation_prompt %}assistant :{% endif %}"
)


def tokenizer(template: str | None = None, **special: str | None) -> PreTrainedTokenizerFast:
    """Makes a tokenizer with a chat template or without one; `special` renames special tokens."""
    model = WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="<unk>")
    inner = Tokenizer(model)
    inner.pre_tokenizer = Whitespace()
    names = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>"} | special
    wrapped = PreTrainedTokenizerFast(tokenizer_object=inner, **names)
    wrapped.chat_template = template
    return wrapped
