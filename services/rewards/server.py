"""A reward model behind Serve: it reads conversations in one thread and scores them in others."""

import asyncio
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from ray.serve.exceptions import BackPressureError

from rayward.cluster.config.serving import ServedRewardModel
from rayward.cluster.errors import InputError, UnscoredError
from rayward.cluster.types import Axis
from rayward.services.rewards.batches import RewardBatches
from rayward.services.rewards.calls import (
    Answered,
    Cut,
    Item,
    ItemScore,
    ModelScores,
    Refusal,
    Written,
)

_READ_AT_ONCE = 32768  # characters, which take some ten milliseconds


class RewardServer:
    """One replica of a reward model: the class that scores in training, for many at a time.

    Args:
        axis: what it judges.
        model: its settings.
        policy: whose answers it scores, as `RewardServiceSettings.policy`.
        deterministic: whether every request gets equal bits for equal items. A model that is not
            float32 on a CPU gives them always, by passes of fixed shape: there others in a batch
            change more of a score than its last bits.

    Raises:
        InputError: names the setting; there is no reward model, or no policy.
    """

    def __init__(
        self, axis: Axis, model: ServedRewardModel, policy: str | None, deterministic: bool
    ) -> None:
        # Here and not above: the gateway imports this file and does without torch.
        from rayward.actors.scoring.reward_model import RewardModel
        from rayward.services.http.text_bounds import TextBounds

        fields = f"reward.{axis}", "reward.policy"
        self._axis = axis
        # To load a model starts a team of OpenMP, too.
        wide = ThreadPoolExecutor(1, "forward-wide")
        self._model = wide.submit(RewardModel, axis, model.path, model, policy, *fields).result()
        self._deterministic = deterministic or self._model.passes.wants_fixed
        self._version = wide.submit(self._model.digest).result()
        self._template_hash = self._model.encoder.template_hash()
        self._bounds = TextBounds(self._model.encoder.tokenizer, self._model.room)
        # One thread alone: whether special tokens are recognised is a state of the tokenizer.
        self._reader = ThreadPoolExecutor(1, "tokenizer")
        self._batches = RewardBatches(axis, self._model.passes, model, wide)

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
        read = []
        for part in _parts(items):
            # Between two parts others get their turn.
            read += await loop.run_in_executor(self._reader, self._read, part)
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
        from rayward.actors.scoring.reward_encoding import cut

        encoder, content, room = self._model.encoder, item.content, self._model.room
        if isinstance(content, Written) and content.end_anew:
            content = content.with_texts([encoder.end_anew(content.text)])
        excess = self._bounds.excess(content.texts)
        if excess is not None:
            side = self._side(item, excess)
            content = content.with_texts(self._bounds.cut(content.texts, side))
        if isinstance(content, Answered):
            try:
                ids = encoder.answered(content.messages, content.response, content.ended)
            except InputError as error:
                roles = [message.role for message in content.messages]
                field = f"{item.field}.messages"
                raise InputError(field, roles, error.expected) from None
        else:
            ids = encoder.written(content.text, content.add_special_tokens)
        if not ids:
            raise InputError(item.field, "no token at all", "a text of one token or more")
        if room is None or len(ids) <= room:
            return ids, excess is not None
        return cut(ids, room, self._side(item, f"{len(ids)} tokens")), True

    def _side(self, item: Item, found: str) -> Cut:
        """Where to take off what the model has no room for.

        Raises:
            InputError: names the item, which is to be refused.
        """
        if item.truncate is None:
            room = self._model.room
            expected = f"at most {room}, which the {self._axis} model reads, or to be truncated"
            raise InputError(item.field, found, expected)
        return item.truncate


def _parts(items: Sequence[Item]) -> Iterator[list[Item]]:
    """Items that are read without a break: of so many characters, or a longer one alone."""
    part: list[Item] = []
    characters = 0
    for item in items:
        length = sum(map(len, item.content.texts))
        if part and characters + length > _READ_AT_ONCE:
            yield part
            part, characters = [], 0
        part.append(item)
        characters += length
    if part:
        yield part
