"""Conversations as token ids: the chat template, the answer, and which tokens are learned.

Text that a person wrote never turns into control tokens: a user's "<eos>" is encoded as the
characters that it consists of.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from cluster.errors import InputError
from cluster.types import Message

_FIRST_STAND_IN = 0xE000  # Unicode's private use area: no template gives it a meaning


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
        InputError: the tokenizer has no chat template, or the template refuses the messages.
    """
    messages, stand_ins = _guarded(tokenizer, messages)
    rendered = _render(tokenizer, messages, add_generation_prompt=True)
    return [token.id for token in _encode(tokenizer, rendered, stand_ins)]


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


def assistant_mask(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], response: str
) -> list[bool]:
    """Which ids of `encode_conversation(tokenizer, messages, response)` the assistant wrote.

    Returns:
        [L]: True on the tokens of every assistant turn, each with its end token where the
        template writes one, and on the whole answer.

    Raises:
        InputError: as `encode_prompt`; or the template writes earlier turns differently once
            later ones follow, so that they cannot be found again.
    """
    messages, stand_ins = _guarded(tokenizer, messages)
    rendered = _render(tokenizer, messages, add_generation_prompt=True)
    tokens = _encode(tokenizer, rendered, stand_ins)
    mask = [False] * len(tokens)
    for turn, message in enumerate(messages):
        if message.role != "assistant":
            continue
        before = _render(tokenizer, messages[:turn], add_generation_prompt=True)
        after = _render(tokenizer, messages[: turn + 1], add_generation_prompt=False)
        if not (rendered.startswith(after) and after.startswith(before)):
            raise InputError(
                "loss_on",
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
    """
    written = "".join(message.content for message in messages)
    if not any(special in written for special in tokenizer.all_special_tokens):
        return list(messages), {}
    avoided = set(written) | set(str(tokenizer.chat_template))
    free = (
        character
        for character in map(chr, range(_FIRST_STAND_IN, _FIRST_STAND_IN + 6400))
        if character not in avoided
    )
    stand_ins: dict[str, str] = {}
    guarded = list(messages)
    # The longest first: one special token's text may be a part of another's.
    for special in sorted(set(tokenizer.all_special_tokens), key=lambda text: (-len(text), text)):
        if special in written:
            stand_in = next(free)
            stand_ins[stand_in] = special
            guarded = [
                Message(message.role, message.content.replace(special, stand_in))
                for message in guarded
            ]
    return guarded, stand_ins


def _render(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], add_generation_prompt: bool
) -> str:
    if tokenizer.chat_template is None:
        raise InputError(
            "model.path", tokenizer.name_or_path, "a model whose tokenizer has a chat template"
        )
    turns = [{"role": message.role, "content": message.content} for message in messages]
    try:
        rendered = tokenizer.apply_chat_template(
            turns, tokenize=False, add_generation_prompt=add_generation_prompt
        )
    except TemplateError as error:
        roles = [message.role for message in messages]
        raise InputError(
            "messages", roles, f"roles in an order that the chat template accepts ({error})"
        ) from error
    assert isinstance(rendered, str)
    return rendered


def _encode(
    tokenizer: PreTrainedTokenizerBase, rendered: str, stand_ins: dict[str, str]
) -> list[_Token]:
    tokens: list[_Token] = []
    piece_start = 0
    for position, character in enumerate(rendered):
        if character in stand_ins:
            tokens += _encode_template(tokenizer, rendered[piece_start:position], piece_start)
            special = _encode_verbatim(tokenizer, stand_ins[character])
            tokens += [_Token(id, position, position + 1) for id in special]
            piece_start = position + 1
    return tokens + _encode_template(tokenizer, rendered[piece_start:], piece_start)


def _encode_template(tokenizer: PreTrainedTokenizerBase, text: str, offset: int) -> list[_Token]:
    if not text:
        return []
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    return [
        _Token(id, offset + start, offset + end)
        for id, (start, end) in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)
    ]


def _encode_verbatim(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    if not text:
        return []
    ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    return list(ids)


def _end_id(tokenizer: PreTrainedTokenizerBase) -> int:
    if tokenizer.eos_token_id is None:
        raise InputError(
            "model.path", tokenizer.name_or_path, "a model whose tokenizer has an end token"
        )
    return int(tokenizer.eos_token_id)
