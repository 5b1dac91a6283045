"""Reward functions for trainers that call a function: TRL and verl.

    reward = trl_reward("http://localhost:8000", model="combined")
    trainer = GRPOTrainer(..., reward_funcs=reward)

verl takes a function by its file's path and name; a file of one line makes it:

    compute_score = verl_compute_score("http://localhost:8000")

A score that could not be had raises. It never becomes a number.
"""

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

import httpx

from cluster.errors import InputError, UnscoredError

RewardChoice = Literal["combined", "safety", "helpfulness"]
# A text, or messages.
_Spoken = str | Iterable[Mapping[str, Any]]
TrlReward = Callable[..., Awaitable[list[float]]]
VerlScore = Callable[..., Awaitable[float]]

KEY_VARIABLE = "RAYWARD_API_KEY"
_ITEMS_AT_ONCE = 64
_PAUSE_S = 1.0
_ADVERSARIAL = "adversarial"


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
                if answer.status_code not in (429, 503):
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
) -> TrlReward:
    """An asynchronous reward function for TRL's trainers.

    It takes prompts and completions as texts or as lists of messages. Of a data set's columns it
    reads `adversarial`, if there is one: the prompts' tags.

    Args:
        url, key, model, timeout_s: as for `RewardClient`.
    """
    client = RewardClient(url, key, model, timeout_s)

    async def rayward_reward(
        prompts: Sequence[_Spoken], completions: Sequence[_Spoken], **columns: object
    ) -> list[float]:
        tags = columns.get(_ADVERSARIAL)
        if not isinstance(tags, Sequence):
            tags = [False] * len(prompts)
        return await client.rewards(
            [
                {**_conversation(prompt, completion), _ADVERSARIAL: bool(tag)}
                for prompt, completion, tag in zip(prompts, completions, tags, strict=True)
            ]
        )

    return rayward_reward


def verl_compute_score(
    url: str,
    key: str | None = None,
    model: RewardChoice = "combined",
    timeout_s: float = 600.0,
) -> VerlScore:
    """An asynchronous `compute_score` for verl's custom reward function.

    verl gives the answer alone: the prompt must be in the data's `extra_info`, as `prompt` or
    `question`, a text or a list of messages; `adversarial` there is its tag.

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
        item = _conversation(prompt, solution_str)
        return (await client.rewards([{**item, _ADVERSARIAL: bool(info.get(_ADVERSARIAL))}]))[0]

    return compute_score


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
