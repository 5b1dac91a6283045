"""A policy that does not change, with the models that score its answers: ask many, get all.

chunk of prompts -> rollout worker (vLLM) -> { safety, helpfulness } -> answers, in order
"""

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import numpy as np
import ray
from ray import ObjectRef
from ray.actor import ActorHandle
from transformers import PreTrainedTokenizerBase

from rayward.actors.models.loading import load_tokenizer
from rayward.actors.requests import session_requests
from rayward.actors.sampling.rollout_worker import RolloutWorker, rollout_environment
from rayward.actors.scoring.reward_model import RewardModel
from rayward.actors.sharding import joined
from rayward.actors.text.chat import decode_response, encode_conversation
from rayward.cluster.config.ppo import PPOSettings, SamplingSettings
from rayward.cluster.ray_runtime.placement import Placement
from rayward.cluster.types import (
    AXES,
    Answers,
    Axis,
    Float32Array,
    OnDone,
    Prompt,
    Question,
    Rollout,
)

_CHUNK = 512
_VERSION = 0


class PolicySession:
    """Rollout workers with one model's weights, and the reward models beside them.

    Args:
        model: a transformers directory or hub id of the policy.
        settings: the roles' settings; a session uses rollout, safety and helpfulness.
        reward_models: paths of the reward models that are there, by axis.
        max_model_len: longest prompt plus answer, in tokens.
        seed: of the engines.
        field: what names the policy, for errors.
    """

    def __init__(
        self,
        model: str,
        settings: PPOSettings,
        reward_models: Mapping[Axis, str],
        max_model_len: int,
        seed: int,
        field: str = "model.path",
    ) -> None:
        self.model = model
        self.reward_models = dict(reward_models)
        self.max_model_len = max_model_len
        # A base model has no chat template, and reads plain text all the same.
        self.tokenizer: PreTrainedTokenizerBase = load_tokenizer(
            model, field, for_chat=bool(reward_models)
        )
        self._timeout = settings.phase_timeout_s
        axes = [axis for axis in AXES if axis in reward_models]
        self._placement = Placement(session_requests(settings, axes), [])
        try:
            self._workers = self._start_workers(settings, seed)
            self._scorers = {axis: self._start_scorers(settings, axis) for axis in axes}
            # Whoever opens a session waits here, and not at the first question.
            ray.get(
                [
                    *(one.version.remote() for one in self._workers),
                    *(one.score.remote([]) for own in self._scorers.values() for one in own),
                ],
                timeout=self._timeout,
            )
        except BaseException:
            self.release()
            raise

    def _start_workers(self, settings: PPOSettings, seed: int) -> list[ActorHandle]:
        own = {
            "model": self.model,
            "settings": settings.rollout,
            "max_model_len": self.max_model_len,
            "eos_token_id": int(self.tokenizer.eos_token_id),
            "seed": seed,
            "version": _VERSION,
        }
        replicas, environment = settings.rollout.replicas, rollout_environment(settings.rollout)
        return self._placement.start("rollout", RolloutWorker, [own] * replicas, environment)

    def _start_scorers(self, settings: PPOSettings, axis: Axis) -> list[ActorHandle]:
        role = getattr(settings, axis)
        own = {
            "role": axis,
            "path": self.reward_models[axis],
            "settings": role,
            "policy_path": self.model,
        }
        return self._placement.start(axis, RewardModel, [own] * role.replicas, {})

    def ask(
        self,
        questions: Sequence[Question],
        sampling: SamplingSettings,
        axes: Sequence[Axis] = (),
        on_done: OnDone | None = None,
    ) -> Answers:
        """Sample an answer to each question, and have it scored on each axis.

        Chunks go to the workers by index, so that a run repeats.

        Raises:
            UnscoredError: a score could not be had.
        """
        chunks = _chunks(questions)
        shards = [
            self._workers[index % len(self._workers)].generate.remote(
                [one.prompt for one in chunk],
                [one.token_ids for one in chunk],
                [one.seed for one in chunk],
                sampling,
                _VERSION,
                [one.sample_index for one in chunk],
            )
            for index, chunk in enumerate(chunks)
        ]
        return self._finish(shards, [len(chunk) for chunk in chunks], axes, on_done)

    def score(
        self,
        prompts: Sequence[Prompt],
        responses: Sequence[str],
        axes: Sequence[Axis],
        on_done: OnDone | None = None,
    ) -> Answers:
        """Have answers scored that somebody else gave, as texts."""
        rollouts = [
            self._written(prompt, response)
            for prompt, response in zip(prompts, responses, strict=True)
        ]
        return self.score_rollouts(rollouts, axes, on_done)

    def score_rollouts(
        self, rollouts: Sequence[Rollout], axes: Sequence[Axis], on_done: OnDone | None = None
    ) -> Answers:
        """Have answers scored that are there, token for token: equal tokens, equal bits."""
        chunks = _chunks(rollouts)
        shards = [ray.put(chunk) for chunk in chunks]
        return self._finish(shards, [len(chunk) for chunk in chunks], axes, on_done)

    def continuation_logprobs(
        self, token_ids: Sequence[Sequence[int]], starts: Sequence[int]
    ) -> list[Float32Array]:
        """Logprobs at temperature 1 of `token_ids[i][starts[i]:]` after what stands before.

        Args:
            token_ids: N sequences.
            starts: N, where each continuation begins; at least 1.

        Returns:
            N of [L_i - starts[i]], in nats.
        """
        pairs = _chunks(list(zip(token_ids, starts, strict=True)))
        calls = [
            self._workers[index % len(self._workers)].continuation_logprobs.remote(
                [ids for ids, _ in chunk], [start for _, start in chunk]
            )
            for index, chunk in enumerate(pairs)
        ]
        parts: Any = ray.get(calls, timeout=self._timeout)
        return joined(parts)

    def release(self) -> None:
        """End all processes."""
        self._placement.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()

    def _finish(
        self,
        shards: Sequence[ObjectRef],
        sizes: Sequence[int],
        axes: Sequence[Axis],
        on_done: OnDone | None,
    ) -> Answers:
        calls: dict[Axis, list[ObjectRef]] = {
            axis: [
                self._scorers[axis][index % len(self._scorers[axis])].score.remote(shard)
                for index, shard in enumerate(shards)
            ]
            for axis in axes
        }
        rollouts: list[Rollout] = []
        parts: dict[Axis, list[Float32Array]] = {axis: [] for axis in axes}
        for index, (shard, size) in enumerate(zip(shards, sizes, strict=True)):
            wanted = [shard, *(calls[axis][index] for axis in axes)]
            done: Any = ray.get(wanted, timeout=self._timeout)
            rollouts += done[0]
            for axis, part in zip(axes, done[1:], strict=True):
                parts[axis].append(part)
            if on_done:
                on_done(size)
        empty = np.zeros(0, dtype=np.float32)
        return Answers(
            rollouts=rollouts,
            texts=[decode_response(self.tokenizer, one.response_ids.tolist()) for one in rollouts],
            scores={axis: np.concatenate([empty, *own]) for axis, own in parts.items()},
        )

    def _written(self, prompt: Prompt, response: str) -> Rollout:
        encoded = encode_conversation(self.tokenizer, prompt.messages, response)
        ids = np.asarray(encoded.token_ids, dtype=np.int64)
        return Rollout(
            prompt=prompt,
            sample_index=0,
            policy_version=_VERSION,
            token_ids=ids,
            response_start=encoded.response_start,
            # Nobody sampled it here.
            sampler_logprobs=np.zeros(len(ids) - encoded.response_start, dtype=np.float32),
            finish_reason="stop",
        )


def _chunks(rows: Sequence[Any]) -> list[Sequence[Any]]:
    return [rows[start : start + _CHUNK] for start in range(0, len(rows), _CHUNK)]
