"""A reward model behind Serve: it reads conversations in one thread and scores them in others."""

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from ray.serve.exceptions import BackPressureError

from cluster.config.serving import ServedRewardModel
from cluster.errors import InputError, UnscoredError
from cluster.types import Axis
from services.reward_batches import RewardBatches
from services.reward_calls import Answered, Item, ItemScore, ModelScores, Refusal


class RewardServer:
    """One replica of a reward model: the class that scores in training, for many at a time.

    Args:
        axis: what it judges.
        model: its settings.
        policy: whose answers it scores, as `RewardServiceSettings.policy`.
        deterministic: whether every request gets equal bits for equal items.

    Raises:
        InputError: names the setting; there is no reward model, or no policy.
    """

    def __init__(
        self, axis: Axis, model: ServedRewardModel, policy: str | None, deterministic: bool
    ) -> None:
        # Here and not above: the gateway imports this file and does without torch.
        from actors.reward_model import RewardModel

        section = f"reward.{axis}"
        self._axis = axis
        self._deterministic = deterministic
        self._model = RewardModel(axis, model.path, model, policy, section)
        self._version = self._model.digest()
        self._template_hash = self._model.encoder.template_hash()
        # One thread alone: whether special tokens are recognised is a state of the tokenizer.
        self._reader = ThreadPoolExecutor(1, "tokenizer")
        self._batches = RewardBatches(axis, self._model.passes, model)

    async def answer(self, items: Sequence[Item], deterministic: bool) -> ModelScores | Refusal:
        """As `score`, but what that raises is the answer: Serve logs every traceback."""
        try:
            return await self.score(items, deterministic)
        except (InputError, UnscoredError, BackPressureError) as refusal:
            # Its traceback holds the request, and would travel.
            return refusal.with_traceback(None)

    async def score(self, items: Sequence[Item], deterministic: bool) -> ModelScores:
        """Score conversations.

        Args:
            items: N of them.
            deterministic: whether equal items get equal bits, whatever they are scored with.

        Raises:
            InputError: names the item; it cannot be written or is too long.
            BackPressureError: too many items wait.
            UnscoredError: a score could not be had.
        """
        loop = asyncio.get_running_loop()
        read = await loop.run_in_executor(self._reader, self._read, items)
        sequences = [ids for ids, _ in read]
        logits = await self._batches.score(sequences, deterministic or self._deterministic)
        return ModelScores(
            version=self._version,
            template_hash=self._template_hash,
            items=tuple(
                ItemScore(logit, len(ids), truncated)
                for logit, (ids, truncated) in zip(logits, read, strict=True)
            ),
        )

    async def check_health(self) -> None:
        """Serve asks now and then, and replaces a replica that raises.

        Raises:
            UnscoredError: the last forward pass failed, and one over a single token fails too.
        """
        if self._batches.last_failed:
            # A full queue is no fault of the model's; the next pass says how it is.
            with suppress(BackPressureError):
                await self._batches.score([[0]], fixed=False)

    def _read(self, items: Sequence[Item]) -> list[tuple[list[int], bool]]:
        """The token ids of each item, and whether some were cut off."""
        return [self._ids(item) for item in items]

    def _ids(self, item: Item) -> tuple[list[int], bool]:
        from actors.reward_encoding import cut

        encoder, content, room = self._model.encoder, item.content, self._model.room
        if isinstance(content, Answered):
            try:
                ids = encoder.answered(content.messages, content.response, content.ended)
            except InputError as error:
                roles = [message.role for message in content.messages]
                field = f"{item.field}.messages"
                raise InputError(field, roles, error.expected) from None
        else:
            text = encoder.end_anew(content.text) if content.end_anew else content.text
            ids = encoder.written(text, content.add_special_tokens)
        if not ids:
            raise InputError(item.field, "no token at all", "a text of one token or more")
        if room is None or len(ids) <= room:
            return ids, False
        if item.truncate is None:
            expected = f"at most {room}, which the {self._axis} model reads, or to be truncated"
            raise InputError(item.field, f"{len(ids)} tokens", expected)
        return cut(ids, room, item.truncate), True
