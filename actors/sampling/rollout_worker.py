"""The rollout worker: a vLLM engine that samples answers, tokens in and tokens out."""

from collections.abc import Sequence
from typing import Any, get_args

import numpy as np
from vllm import LLM, SamplingParams
from vllm.config import WeightTransferConfig
from vllm.distributed.weight_transfer.base import (
    WeightTransferInitRequest,
    WeightTransferUpdateRequest,
)
from vllm.inputs import TokensPrompt
from vllm.outputs import CompletionOutput

from rayward.actors.sampling.weight_transfer import BACKEND
from rayward.cluster.config.ppo import SamplingSettings
from rayward.cluster.config.roles import RolloutRole
from rayward.cluster.errors import StaleEngineError, UnscoredError
from rayward.cluster.types import FinishReason, Float32Array, Prompt, Rollout


class RolloutWorker:
    """Samples from one weight version at a time, and refuses any other.

    Args:
        model: a transformers directory or hub id.
        settings: the role's settings.
        max_model_len: longest prompt plus answer, in tokens.
        eos_token_id: ends an answer.
        seed: of the engine; every request has a seed of its own beside it.
        version: what the weights at `model` are called; None refuses to sample before a sync.
    """

    def __init__(
        self,
        model: str,
        settings: RolloutRole,
        max_model_len: int,
        eos_token_id: int,
        seed: int,
        version: int | None = None,
    ) -> None:
        self._eos_token_id = eos_token_id
        self._max_model_len = max_model_len
        self._updating = False
        self._backend = settings.weight_sync.backend
        self._llm = LLM(
            model=model,
            skip_tokenizer_init=True,
            dtype=settings.precision,
            seed=seed,
            max_model_len=max_model_len,
            max_num_seqs=settings.max_num_seqs,
            # A prompt is read in one go or waits: where vLLM cuts one, it rewinds the request's
            # random generator, which a CPU's cannot do.
            enable_chunked_prefill=False,
            max_num_batched_tokens=max(8192, max_model_len),
            enforce_eager=settings.enforce_eager,
            gpu_memory_utilization=settings.gpu_memory_utilization,
            tensor_parallel_size=settings.tensor_parallel_size,
            # In this process, one set of failures; an engine that is split needs others beside it.
            distributed_executor_backend="uni" if settings.tensor_parallel_size == 1 else "mp",
            # Logprobs at the sampling temperature: vLLM's default leaves it out.
            logprobs_mode="processed_logprobs",
            # A cached prefix would be recomputed after a resume: other bits for the same seed.
            enable_prefix_caching=False,
            weight_transfer_config=WeightTransferConfig(backend=settings.weight_sync.backend),
            disable_log_stats=True,
        )
        if version is not None:
            self._llm.llm_engine.set_weight_version(str(version))

    def version(self) -> str:
        """The weight version that the engine holds, as vLLM itself says."""
        return self._llm.get_weight_version()

    def generate(
        self,
        prompts: Sequence[Prompt],
        token_ids: Sequence[Sequence[int]],
        seeds: Sequence[int],
        sampling: SamplingSettings,
        version: int,
        sample_indices: Sequence[int] | None = None,
    ) -> list[Rollout]:
        """Sample one answer per prompt.

        Args:
            prompts: N prompts, carried through.
            token_ids: N lists of prompt tokens.
            seeds: N request seeds: the same seed and weights give the same tokens.
            sampling: temperature, nucleus and length.
            version: the weight version that the answers must come from.
            sample_indices: N places among the answers to the same prompt; all 0 by default.

        Raises:
            StaleEngineError: the engine holds another version, or is amid an update.
        """
        self._require(version)
        parameters = [
            SamplingParams(
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                max_tokens=sampling.max_response_tokens,
                seed=seed,
                logprobs=0,
                detokenize=False,
                stop_token_ids=[self._eos_token_id],
            )
            for seed in seeds
        ]
        inputs = [TokensPrompt(prompt_token_ids=list(ids)) for ids in token_ids]
        outputs = self._llm.generate(inputs, parameters, use_tqdm=False)
        indices = sample_indices if sample_indices is not None else [0] * len(prompts)
        return [
            self._rollout(prompt, list(ids), output.outputs[0], version, index)
            for prompt, ids, output, index in zip(prompts, token_ids, outputs, indices, strict=True)
        ]

    def continuation_logprobs(
        self, token_ids: Sequence[Sequence[int]], starts: Sequence[int]
    ) -> list[Float32Array]:
        """Logprobs at temperature 1 of `token_ids[i][starts[i]:]` after what stands before.

        The engine reads each sequence as a prompt and samples one token behind it, which counts
        for nothing: a sequence may be one token shorter than the engine's longest.

        Args:
            token_ids: N sequences of L_i tokens.
            starts: N, where each continuation begins: 1 <= start < L_i.

        Returns:
            N of [L_i - starts[i]], in nats.

        Raises:
            ValueError: a continuation is empty or has nothing before it, or a sequence is too long.
        """
        for ids, start in zip(token_ids, starts, strict=True):
            if not 1 <= start < len(ids) < self._max_model_len:
                raise ValueError(
                    f"a continuation starts at {start} of {len(ids)} tokens; "
                    f"expected 1 <= start < tokens < {self._max_model_len}"
                )
        parameters = SamplingParams(
            temperature=0.0,
            max_tokens=1,
            # No alternatives, the tokens' own logprobs only; as one list a sequence.
            prompt_logprobs=0,
            flat_logprobs=True,
            detokenize=False,
        )
        inputs = [TokensPrompt(prompt_token_ids=list(ids)) for ids in token_ids]
        outputs: Any = self._llm.generate(inputs, parameters, use_tqdm=False)
        # The first token has no logprob: position t is that of token t + 1.
        return [
            np.asarray(output.prompt_logprobs.logprobs[start - 1 :], dtype=np.float32)
            for output, start in zip(outputs, starts, strict=True)
        ]

    def _require(self, version: int) -> None:
        held = "an unfinished update" if self._updating else self.version()
        if held != str(version):
            raise StaleEngineError(f"the sampler holds {held}, asked for version {version}")

    def _rollout(
        self,
        prompt: Prompt,
        prompt_ids: list[int],
        completion: CompletionOutput,
        version: int,
        sample: int,
    ) -> Rollout:
        held = {span.version for span in completion.weight_versions or []}
        if held != {str(version)}:
            raise StaleEngineError(f"an answer came from versions {held}, asked for {version}")
        response = list(completion.token_ids)
        steps: Any = completion.logprobs
        logprobs = [step[token].logprob for token, step in zip(response, steps, strict=True)]
        if completion.finish_reason not in get_args(FinishReason):
            raise UnscoredError(f"vLLM ended an answer with {completion.finish_reason!r}")
        finish: FinishReason = "stop" if completion.finish_reason == "stop" else "length"
        return Rollout(
            prompt=prompt,
            sample_index=sample,
            policy_version=version,
            token_ids=np.asarray(prompt_ids + response, dtype=np.int64),
            response_start=len(prompt_ids),
            sampler_logprobs=np.asarray(logprobs, dtype=np.float32),
            finish_reason=finish,
        )

    def init_weight_transfer_engine(self, request: WeightTransferInitRequest) -> None:
        """Open the way for new weights."""
        self._llm.init_weight_transfer_engine(request)

    def start_weight_update(self) -> None:
        """Begin an update; until it is finished nothing is sampled."""
        self._updating = True
        self._llm.start_weight_update()

    def update_weights(self, request: WeightTransferUpdateRequest) -> None:
        """Take one part of the new weights."""
        info: Any = request.update_info
        if self._backend == BACKEND:
            # Only who gets weights needs Ray; an engine that keeps its own runs without.
            import ray

            # Fetched here: the processes of an engine that is split are no workers of Ray.
            info = {"bucket": ray.get(info["bucket"][0])}
        self._llm.update_weights(WeightTransferUpdateRequest(update_info=info))

    def finish_weight_update(self, weight_version: str) -> None:
        """Take up the new weights and their version."""
        self._llm.finish_weight_update(weight_version)
        self._updating = False


def rollout_environment(settings: RolloutRole) -> dict[str, str]:
    """Environment that a rollout worker's process must start with."""
    return {
        # The engine lives in the actor's own process: one process, one set of failures.
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_CPU_KVCACHE_SPACE": str(settings.kv_cache_gib),
        # Several roles share the cores: threads bound to cores would pile up on the first ones.
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": "WARNING",
        "TORCHDYNAMO_DISABLE": "1" if settings.enforce_eager else "0",
    }
