"""Conversations as token ids: the chat template, the answer, and which tokens are learned.

Text that a person wrote never turns into control tokens: a user's "<eos>" is encoded as the
characters that it consists of.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Literal

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from rayward.actors.models.kinds import first_line
from rayward.cluster.errors import InputError
from rayward.cluster.types import Message

# Up to where an answer begins, with the whole answer, and up to where the answer was cut.
_Part = Literal["prompt", "answered", "cut"]
_ANSWERED: tuple[_Part, ...] = ("answered", "cut")
# Unicode's private use areas, two of them whole planes: no template gives what is there a meaning.
_STAND_INS = (range(0xE000, 0xF900), range(0xF0000, 0xFFFFE), range(0x100000, 0x10FFFE))


@dataclass(frozen=True)
class EncodedConversation:
    """A prompt and its answer: `token_ids[:response_start]` is the prompt, L ids in all."""

    token_ids: list[int]
    response_start: int


@dataclass(frozen=True)
class _Token:
    """One id of a prompt, and the characters [start, end) of the rendered text it stands for."""

    id: int
    start: int
    end: int


def encode_prompt(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> list[int]:
    """Encode a conversation up to where the assistant's answer begins.

    Raises:
        InputError: the tokenizer has no chat template, or the template refuses the messages; or
            they name a special token, and leave no private character to stand in for it.
    """
    messages, stand_ins = _guarded(tokenizer, messages)
    rendered = _render(tokenizer, messages, "prompt")
    return _encode(tokenizer, rendered, stand_ins)


def encode_response(tokenizer: PreTrainedTokenizerBase, response: str) -> list[int]:
    """Encode an answer by itself; the one end token is the last id."""
    return [*_encode_verbatim(tokenizer, response), _end_id(tokenizer)]


def encode_conversation(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], response: str
) -> EncodedConversation:
    """Encode a prompt and the answer to it, each by itself: tokens in, tokens out.

    Raises:
        InputError: as `encode_prompt`.
    """
    prompt_ids = encode_prompt(tokenizer, messages)
    return EncodedConversation(
        token_ids=prompt_ids + encode_response(tokenizer, response),
        response_start=len(prompt_ids),
    )


def encode_answered(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], response: str, ended: bool
) -> list[int]:
    """Encode a prompt and the answer to it as one text, through the chat template alone.

    For models that judge text. Where no special token's text is in a content, these are the ids
    of transformers' `apply_chat_template`, with `continue_final_message` for an answer that was
    cut before its end: it must not look as if it had ended.

    Raises:
        InputError: as `encode_prompt`; or the template does not leave a cut answer as it is.
    """
    whole, stand_ins = _guarded(tokenizer, [*messages, Message("assistant", response)])
    rendered = _render(tokenizer, whole, "answered" if ended else "cut")
    return _encode(tokenizer, rendered, stand_ins)


def require_template(tokenizer: PreTrainedTokenizerBase, field: str, value: str) -> None:
    """Refuse a chat template that does not write what was asked and answered.

    Args:
        field: the setting that the template comes from.
        value: what the setting says.

    Raises:
        InputError: names `field`; it is no Jinja, or writes something else.
    """
    asked, answered = "eins zwei", "drei vier"
    messages = [Message("user", asked), Message("assistant", answered)]
    expected = "a chat template that writes a question and its answer"
    for part in _ANSWERED:
        try:
            text = _render(tokenizer, messages, part)
        except InputError as error:
            reason = first_line(error.__cause__) if error.__cause__ else error.expected
            raise InputError(field, value, f"{expected} ({reason})") from None
        if asked not in text or answered not in text:
            raise InputError(field, value, expected)


def assistant_mask(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    response: str,
    field: str = "loss_on",
) -> list[bool]:
    """Which ids of `encode_conversation(tokenizer, messages, response)` the assistant wrote.

    Args:
        field: the setting that asks for it, for errors.

    Returns:
        [L]: True on the tokens of every assistant turn, each with its end token where the
        template writes one, and on the whole answer.

    Raises:
        InputError: as `encode_prompt`; or names `field`: the template writes earlier turns
            differently once later ones follow, so that they cannot be found again.
    """
    messages, stand_ins = _guarded(tokenizer, messages)
    rendered = _render(tokenizer, messages, "prompt")
    tokens = _located(tokenizer, rendered, stand_ins)
    mask = [False] * len(tokens)
    for turn, message in enumerate(messages):
        if message.role != "assistant":
            continue
        before = _render(tokenizer, messages[:turn], "prompt")
        after = _render(tokenizer, messages[: turn + 1], "answered")
        if not (rendered.startswith(after) and after.startswith(before)):
            raise InputError(
                field,
                "all_assistant_turns",
                "final_turn: this chat template rewrites earlier assistant turns",
            )
        for index, token in enumerate(tokens):
            if len(before) <= token.start and token.end <= len(after):
                mask[index] = True
                if token.id == tokenizer.eos_token_id:
                    break  # what follows is the template's, a line break for example
    return mask + [True] * len(encode_response(tokenizer, response))


def decode_response(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """The text of an answer, without special tokens."""
    text = tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
    assert isinstance(text, str)
    return text


def _guarded(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]
) -> tuple[list[Message], dict[str, str]]:
    """Put one private character in place of each special token's text inside a content.

    Returns:
        The messages, and the text that each stand-in character stands for.

    Raises:
        InputError: all private characters are in use.
    """
    written = "".join(message.content for message in messages)
    # Some control tokens have no name, and are known by their flag alone.
    flagged = (str(token) for token in tokenizer.added_tokens_decoder.values() if token.special)
    specials = {text for text in (*tokenizer.all_special_tokens, *flagged) if text in written}
    if not specials:
        return list(messages), {}
    avoided = set(written) | set(str(tokenizer.chat_template))
    free = (character for character in map(chr, chain(*_STAND_INS)) if character not in avoided)
    stand_ins: dict[str, str] = {}
    guarded = list(messages)
    # The longest first: one special token's text may be a part of another's.
    for special in sorted(specials, key=lambda text: (-len(text), text)):
        stand_in = next(free, None)
        if stand_in is None:
            expected = "a private character of Unicode that is not in them, to stand for a token"
            raise InputError("messages", f"{len(written)} characters", expected)
        stand_ins[stand_in] = special
        guarded = [
            Message(message.role, message.content.replace(special, stand_in)) for message in guarded
        ]
    return guarded, stand_ins


def _render(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    part: _Part,
) -> str:
    """The text of a conversation."""
    if tokenizer.chat_template is None:
        expected = "a model whose tokenizer has a chat template"
        raise InputError("chat template", tokenizer.name_or_path, expected)
    turns = [{"role": message.role, "content": message.content} for message in messages]
    try:
        rendered = tokenizer.apply_chat_template(
            turns,
            tokenize=False,
            add_generation_prompt=part == "prompt",
            continue_final_message=part == "cut",
        )
    except TemplateError as error:
        roles = [message.role for message in messages]
        expected = f"roles in an order that the chat template accepts ({first_line(error)})"
        raise InputError("messages", roles, expected) from error
    except (TypeError, ValueError) as error:
        # The words of transformers' ValueError hold the whole conversation.
        reason = type(error).__name__
        expected = f"one that can write a conversation and leaves its answer alone; {reason}"
        raise InputError("chat template", tokenizer.name_or_path, expected) from None
    assert isinstance(rendered, str)
    return rendered


def _encode(
    tokenizer: PreTrainedTokenizerBase, rendered: str, stand_ins: dict[str, str]
) -> list[int]:
    ids: list[int] = []
    # Each once: a text may consist of nothing else.
    verbatim = {text: _encode_verbatim(tokenizer, text) for text in stand_ins.values()}
    for _, text, is_verbatim in _pieces(rendered, stand_ins):
        if is_verbatim:
            ids += verbatim[text]
        else:
            ids += tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def _located(
    tokenizer: PreTrainedTokenizerBase, rendered: str, stand_ins: dict[str, str]
) -> list[_Token]:
    """As `_encode`, with the place of each id in the rendered text."""
    tokens: list[_Token] = []
    for start, text, is_verbatim in _pieces(rendered, stand_ins):
        if is_verbatim:
            tokens += [_Token(id, start, start + 1) for id in _encode_verbatim(tokenizer, text)]
            continue
        encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        tokens += [
            _Token(id, start + first, start + last)
            for id, (first, last) in zip(
                encoded["input_ids"], encoded["offset_mapping"], strict=True
            )
        ]
    return tokens


def _pieces(rendered: str, stand_ins: dict[str, str]) -> Iterator[tuple[int, str, bool]]:
    """Where each piece starts, its text, and whether it is text that looks like a special token."""
    start = 0
    for position, character in enumerate(rendered):
        if character in stand_ins:
            if start < position:
                yield start, rendered[start:position], False
            yield position, stand_ins[character], True
            start = position + 1
    if start < len(rendered):
        yield start, rendered[start:], False


def _encode_verbatim(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    if not text:
        return []
    ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    return list(ids)


def _end_id(tokenizer: PreTrainedTokenizerBase) -> int:
    if tokenizer.eos_token_id is None:
        expected = "a model whose tokenizer has an end token"
        raise InputError("end token", tokenizer.name_or_path, expected)
    return int(tokenizer.eos_token_id)
