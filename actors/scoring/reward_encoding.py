"""What a reward model reads: the ids of a conversation, as in training."""

import hashlib
from collections.abc import Sequence
from typing import Literal

from transformers import PreTrainedTokenizerBase

from rayward.actors.models.loading import speak_alike
from rayward.actors.text.chat import decode_response, encode_answered, encode_conversation
from rayward.cluster.types import Message, Rollout

CutSide = Literal["left", "right"]


class RewardEncoder:
    """Turns conversations into a reward model's token ids.

    A model that speaks the policy's tokens reads them as they are. Any other gets the text and
    puts it through its own tokenizer and chat template.

    Args:
        tokenizer: the model's own, with a chat template.
        policy_tokenizer: of whose answers are scored; None: of nobody in particular, and every
            conversation goes through the model's own chat template.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        policy_tokenizer: PreTrainedTokenizerBase | None,
    ) -> None:
        self.tokenizer = tokenizer
        self._policy_tokenizer = policy_tokenizer
        self.same_tokens = policy_tokenizer is not None and speak_alike(tokenizer, policy_tokenizer)

    def rollout(self, rollout: Rollout) -> list[int]:
        """The ids of an answer that the policy sampled."""
        assert self._policy_tokenizer is not None
        if self.same_tokens:
            return rollout.token_ids.tolist()
        text = decode_response(self._policy_tokenizer, rollout.response_ids.tolist())
        ended = rollout.finish_reason == "stop"
        return encode_answered(self.tokenizer, rollout.prompt.messages, text, ended)

    def answered(self, messages: Sequence[Message], response: str, ended: bool) -> list[int]:
        """The ids of a conversation and its answer: those of `rollout`, from text.

        Args:
            ended: whether the answer came to its end, or was cut.

        Raises:
            InputError: as `rayward.actors.text.chat.encode_prompt`.
        """
        if not self.same_tokens:
            return encode_answered(self.tokenizer, messages, response, ended)
        ids = encode_conversation(self.tokenizer, messages, response).token_ids
        return ids if ended else ids[:-1]

    def written(self, text: str, add_special_tokens: bool) -> list[int]:
        """The ids of a conversation as a chat template wrote it, whose special tokens count.

        Args:
            add_special_tokens: add those that the tokenizer puts around a text by itself.
        """
        return list(self.tokenizer(text, add_special_tokens=add_special_tokens)["input_ids"])

    def end_anew(self, text: str) -> str:
        """A text with the padding and end tokens at both ends taken off, and one end token put on.

        A model without an end token closes a text in a way of its own.
        """
        end = str(self.tokenizer.eos_token or "")
        marks = [str(mark) for mark in (end, self.tokenizer.pad_token) if mark]
        first, last = 0, len(text)
        while mark := next((mark for mark in marks if text.startswith(mark, first)), None):
            first += len(mark)
        while mark := next((mark for mark in marks if text.endswith(mark, first, last)), None):
            last -= len(mark)
        return text[first:last] + end

    def template_hash(self) -> str:
        """SHA-256 of the chat template's text, in hexadecimal."""
        return hashlib.sha256(str(self.tokenizer.chat_template).encode()).hexdigest()


def cut(ids: list[int], room: int, side: CutSide) -> list[int]:
    """At most `room` ids, taken off at one side."""
    return ids[:room] if side == "right" else ids[max(0, len(ids) - room) :]
