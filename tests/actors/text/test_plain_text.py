"""Plain text as token ids: what a tokenizer adds before it stays, what it adds behind does not."""

from tokenizers import processors
from transformers import PreTrainedTokenizerFast

from rayward.actors.text.plain_text import encode_continuations, encode_text
from tests.tiny import tiny_tokenizer


def with_specials(single: str) -> PreTrainedTokenizerFast:
    tokenizer = tiny_tokenizer()
    names = {one: tokenizer.convert_tokens_to_ids(one) for one in ("<bos>", "<eos>")}
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=single, special_tokens=list(names.items())
    )
    return tokenizer


def letters(text: str) -> list[int]:
    return tiny_tokenizer()(text)["input_ids"]


def test_a_beginning_of_text_token_stands_there_and_an_end_token_does_not() -> None:
    bos = tiny_tokenizer().bos_token_id
    assert encode_text(tiny_tokenizer(), "ab") == letters("ab")
    assert encode_text(with_specials("<bos> $A"), "ab") == [bos, *letters("ab")]
    assert encode_text(with_specials("<bos> $A <eos>"), "ab") == [bos, *letters("ab")]
    assert encode_text(with_specials("$A <eos>"), "aa") == letters("aa")


def test_a_control_token_in_a_text_is_its_characters() -> None:
    tokenizer = with_specials("<bos> $A")
    ids = encode_text(tokenizer, "a<eos>")
    assert len(ids) == 1 + len("a<eos>")
    assert tokenizer.eos_token_id not in ids
    assert tokenizer.decode(ids[1:]) == "a<eos>"


def test_continuations_are_split_where_the_context_ends() -> None:
    tokenizer = with_specials("<bos> $A <eos>")
    context, together = encode_continuations(tokenizer, "Q: x\nA:", [" yes", " no"])
    assert tokenizer.decode(context[1:]) == "Q: x\nA:"
    assert [ids[: len(context)] for ids in together] == [context, context]
    assert [tokenizer.decode(ids[len(context) :]) for ids in together] == [" yes", " no"]
