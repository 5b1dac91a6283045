"""Reward functions for trainers that call a function: TRL and verl.

    reward = trl_reward("http://localhost:8000", end_ids=[tokenizer.eos_token_id])
    trainer = GRPOTrainer(..., reward_funcs=reward)

verl takes a function by its file's path and name; a file of one line makes it:

    compute_score = verl_compute_score("http://localhost:8000")

A score that could not be had raises. It never becomes a number.
"""

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, Literal

import httpx

from rayward.cluster.errors import InputError, UnscoredError

RewardChoice = Literal["combined", "safety", "helpfulness"]
# A text, or messages.
_Spoken = str | Iterable[Mapping[str, Any]]
TrlReward = Callable[..., Awaitable[list[float]]]
VerlScore = Callable[..., Awaitable[float]]

KEY_VARIABLE = "RAYWARD_API_KEY"
_ITEMS_AT_ONCE = 64
_PAUSE_S = 1.0
_ADVERSARIAL, _ENDED = "adversarial", "ended"
# What passes: the rate, a full service, one that restarts. HAProxy says 500 where the gateway is
# gone, in place of 502, 503 and 504. Scoring twice does no harm.
_RETRIED = (429, 500, 502, 503, 504)


class RewardClient:
    """Asks a service for rewards.

    Args:
        url: where it is, without a path.
        key: one with the scope `score`; None: that of RAYWARD_API_KEY, or none at all.
        model: which score is the reward.
        timeout_s: how long to go on asking a service that is busy or away.
        items_at_once: conversations in one request, at most.
    """

    def __init__(
        self,
        url: str,
        key: str | None = None,
        model: RewardChoice = "combined",
        timeout_s: float = 600.0,
        items_at_once: int = _ITEMS_AT_ONCE,
    ) -> None:
        key = key if key is not None else os.environ.get(KEY_VARIABLE)
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._url = f"{url.rstrip('/')}/v1/score"
        self._model = model
        self._timeout_s = timeout_s
        self._items_at_once = items_at_once

    async def rewards(self, items: Sequence[Mapping[str, Any]]) -> list[float]:
        """The rewards of N items of `POST /v1/score`, in their order.

        Raises:
            UnscoredError: the service refused, or was busy or away for longer than `timeout_s`.
        """
        parts = [
            items[start : start + self._items_at_once]
            for start in range(0, len(items), self._items_at_once)
        ]
        ends = time.monotonic() + self._timeout_s
        async with httpx.AsyncClient(headers=self._headers) as client:
            found = [await self._part(client, part, ends) for part in parts]
        return [reward for part in found for reward in part]

    async def _part(
        self, client: httpx.AsyncClient, items: Sequence[Mapping[str, Any]], ends: float
    ) -> list[float]:
        models = None if self._model == "combined" else [self._model]
        body = {"items": list(items), "models": models}
        reason = "no time was given"
        while (left := ends - time.monotonic()) > 0:
            wait_s = _PAUSE_S
            try:
                answer = await client.post(self._url, json=body, timeout=left)
            except httpx.TransportError as error:
                reason = type(error).__name__
            else:
                if answer.status_code == 200:
                    return [self._reward(result) for result in answer.json()["results"]]
                reason = f"{answer.status_code} {answer.text[:500]}"
                if answer.status_code not in _RETRIED:
                    break
                wait_s = _pause_s(answer)
            await asyncio.sleep(min(wait_s, max(0.0, ends - time.monotonic())))
        raise UnscoredError(f"{self._url}: {reason}")

    def _reward(self, result: Mapping[str, Any]) -> float:
        if self._model != "combined":
            return float(result["scores"][self._model]["logit"])
        if result["reward"] is None:
            raise UnscoredError(f"{self._url}: both models are needed for a combined reward")
        return float(result["reward"])


def trl_reward(
    url: str,
    key: str | None = None,
    model: RewardChoice = "combined",
    timeout_s: float = 600.0,
    end_ids: Collection[int] = (),
) -> TrlReward:
    """An asynchronous reward function for TRL's trainers.

    It takes prompts and completions as texts or as lists of messages. Of the columns that a trainer
    passes on it reads `adversarial`, the prompts' tags, and `ended`, whether each completion came
    to its end; both may be missing.

    Args:
        url, key, model, timeout_s: as for `RewardClient`.
        end_ids: the policy's end tokens. With them a completion has ended if the last of its
            `completion_ids` is one; the text alone does not tell. Without them, and without a
            column `ended`, each is scored as one that has.
    """
    client = RewardClient(url, key, model, timeout_s)

    async def rayward_reward(
        prompts: Sequence[_Spoken], completions: Sequence[_Spoken], **columns: object
    ) -> list[float]:
        count = len(prompts)
        tags = _flags(columns, _ADVERSARIAL, count, default=False)
        ended = _flags(columns, _ENDED, count, default=True)
        if end_ids and columns.get(_ENDED) is None:
            ended = _ended(columns, end_ids, count)
        spoken = zip(prompts, completions, tags, ended, strict=True)
        return await client.rewards([_item(*one) for one in spoken])

    return rayward_reward


def verl_compute_score(
    url: str,
    key: str | None = None,
    model: RewardChoice = "combined",
    timeout_s: float = 600.0,
) -> VerlScore:
    """An asynchronous `compute_score` for verl's custom reward function.

    verl gives the answer alone: the prompt must be in the data's `extra_info`, as `prompt` or
    `question`, a text or a list of messages. `adversarial` there is its tag, and `ended` says
    whether the answer came to its end, as it is taken to have if there is no such word.

    Args:
        url, key, model, timeout_s: as for `RewardClient`.
    """
    client = RewardClient(url, key, model, timeout_s)

    async def compute_score(
        data_source: str,
        solution_str: str,
        ground_truth: object,
        extra_info: Mapping[str, Any] | None = None,
        **others: object,
    ) -> float:
        info = extra_info or {}
        prompt = next((info[name] for name in ("prompt", "question") if name in info), None)
        if prompt is None:
            raise InputError("extra_info", sorted(info), "a prompt, or a question, among them")
        tag = _flag(_ADVERSARIAL, info.get(_ADVERSARIAL), default=False)
        ended = _flag(_ENDED, info.get(_ENDED), default=True)
        return (await client.rewards([_item(prompt, solution_str, tag, ended)]))[0]

    return compute_score


def _column(columns: Mapping[str, object], name: str, count: int) -> list[Any]:
    """A column's values: a list, or an array or tensor of any kind.

    Raises:
        InputError: names the column; it is none, or has not as many values.
    """
    column = columns.get(name)
    if isinstance(column, str) or not isinstance(column, Iterable):
        raise InputError(name, type(column).__name__, f"{count} values, one for each prompt")
    values = list(column)
    if len(values) != count:
        raise InputError(name, f"{len(values)} values", f"{count}, one for each prompt")
    return values


def _flags(columns: Mapping[str, object], name: str, count: int, default: bool) -> list[bool]:
    if columns.get(name) is None:
        return [default] * count
    return [_flag(name, value, default) for value in _column(columns, name, count)]


def _flag(name: str, value: Any, default: bool) -> bool:  # noqa: ANN401
    """A value that is true or false in whatever way a data set writes it, but as a text."""
    if isinstance(value, str):
        raise InputError(name, value[:100], "true or false, not a text")
    return default if value is None else bool(value)


def _ended(columns: Mapping[str, object], end_ids: Collection[int], count: int) -> list[bool]:
    """Which completions' ids end with an end token."""
    completions = _column(columns, "completion_ids", count)
    return [len(ids) > 0 and int(ids[-1]) in end_ids for ids in completions]


def _item(prompt: _Spoken, completion: _Spoken, tag: bool, ended: bool) -> dict[str, Any]:
    """What `POST /v1/score` takes."""
    return {**_conversation(prompt, completion), _ADVERSARIAL: tag, _ENDED: ended}


def _conversation(prompt: _Spoken, completion: _Spoken) -> dict[str, Any]:
    """A prompt and a completion, as an item to score."""
    asked = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else _turns(prompt)
    if isinstance(completion, str):
        return {"messages": asked, "response": completion}
    *between, last = _turns(completion)
    return {"messages": asked + between, "response": last["content"]}


def _turns(messages: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [{"role": turn["role"], "content": turn["content"]} for turn in messages]


def _pause_s(answer: httpx.Response) -> float:
    """How long a service that is busy asks to be left alone."""
    said = answer.headers.get("Retry-After", "")
    return float(said) if said.isdecimal() else _PAUSE_S
