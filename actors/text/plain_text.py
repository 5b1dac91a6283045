"""Text without a chat template as token ids, for models that go on with it.

As the field's harness does it (EleutherAI's lm-evaluation-harness, `loglikelihood`): what the
tokenizer itself puts before a text stands there, such as Llama's <s>; a continuation is encoded
together with what it follows, so that the two join as they would in any text.
"""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase


def encode_text(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Encode a text that goes on.

    What a tokenizer would put behind a text, an end token, is left off. A special token's text
    inside it is encoded as the characters that it consists of.
    """
    bare = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    whole = list(tokenizer(text, split_special_tokens=True)["input_ids"])
    added = len(whole) - len(bare)
    before = next((n for n in range(added + 1) if whole[n : n + len(bare)] == bare), added)
    return whole[: before + len(bare)]


def encode_continuations(
    tokenizer: PreTrainedTokenizerBase, context: str, continuations: Sequence[str]
) -> tuple[list[int], list[list[int]]]:
    """Encode a context by itself, and N times with another continuation behind it.

    Returns:
        The context's ids, of which there are C, and N lists of ids; in each the continuation
        starts at C.
    """
    together = [encode_text(tokenizer, context + continuation) for continuation in continuations]
    return encode_text(tokenizer, context), together
