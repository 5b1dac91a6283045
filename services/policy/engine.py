"""vLLM's engine, and in front of it vLLM's own layer for OpenAI's API.

A conversation is encoded here, as in training: what looks like a control token in somebody's text
stays text. The engine gets the tokens.
"""

import asyncio
import secrets
from argparse import Namespace
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Self

from starlette.datastructures import State
from transformers import PreTrainedTokenizerBase
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.entrypoints.launchers.cli_args import FrontendArgs
from vllm.entrypoints.openai.api_server import init_app_state
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.entrypoints.openai.completion.protocol import CompletionRequest
from vllm.entrypoints.serve import create_error_response
from vllm.entrypoints.serve.engine.protocol import ErrorResponse
from vllm.exceptions import VLLMError
from vllm.utils.gc_utils import freeze_gc_heap
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.metrics.ray_wrappers import RayPrometheusStatLogger

from rayward.actors.models.loading import load_tokenizer
from rayward.actors.text.chat import encode_prompt
from rayward.cluster.config.serving import PolicyServiceSettings
from rayward.cluster.errors import InputError
from rayward.cluster.types import Message
from rayward.services.http.text_bounds import TextBounds
from rayward.services.policy.schemas import MAX_LOGPROBS, POLICY, Kind


class PolicyEngine:
    """Answers requests in the form of vLLM's API. Made by `start`.

    Args:
        engine: samples.
        state: holds vLLM's layer above the engine.
        tokenizer: the policy's.
    """

    def __init__(self, engine: AsyncLLM, state: State, tokenizer: PreTrainedTokenizerBase) -> None:
        self._engine = engine
        self._chat = state.openai_serving_chat.create_chat_completion
        self._text = state.openai_serving_completion.create_completion
        self._room: int = engine.model_config.max_model_len
        self._bounds = TextBounds(tokenizer, self._room)
        self._tokenizer = tokenizer
        # One thread: a tokenizer does not bear two users at a time.
        self._encoder = ThreadPoolExecutor(1, "encode")

    @classmethod
    async def start(cls, settings: PolicyServiceSettings) -> Self:
        """Load the policy."""
        arguments = engine_arguments(settings)
        engine = AsyncLLM.from_engine_args(arguments, stat_loggers=[RayPrometheusStatLogger])
        state = State()
        options = Namespace(**(vars(FrontendArgs()) | vars(arguments)))
        await init_app_state(engine, state, options, await engine.get_supported_tasks())
        tokenizer = load_tokenizer(settings.path, "policy.path")
        # As vLLM's own server: else the collector goes through all that vLLM imported, which
        # stops everything for half a second now and then.
        freeze_gc_heap()
        return cls(engine, state, tokenizer)

    async def answer(self, kind: Kind, request: dict[str, Any]) -> dict[str, Any]:
        """The whole answer to a request, or `{"error": ...}`."""
        try:
            made = await self._serve(kind, request)
        except (VLLMError, ValueError) as error:
            return _error(error, request)
        if isinstance(made, ErrorResponse):
            return _refused(made, request)
        answer: dict[str, Any] = made.model_dump(mode="json")
        return answer

    async def stream(
        self, kind: Kind, request: dict[str, Any]
    ) -> AsyncIterator[str | dict[str, Any]]:
        """An answer as server-sent events, or one `{"error": ...}` instead."""
        try:
            made = await self._serve(kind, {**request, "stream": True})
        except (VLLMError, ValueError) as error:
            yield _error(error, request)
            return
        if isinstance(made, ErrorResponse):
            yield _refused(made, request)
            return
        async for event in made:
            yield event

    async def _serve(self, kind: Kind, request: dict[str, Any]) -> Any:  # noqa: ANN401
        expected = f"less than the {self._room} tokens that prompt and answer have room for"
        if kind == "text":
            prompts = request["prompt"]
            for prompt in [prompts] if isinstance(prompts, str) else prompts:
                self._require_bounds("prompt", [prompt], expected)
            return await self._text(CompletionRequest(**request))
        messages = [Message(**message) for message in request["messages"]]
        self._require_bounds("messages", [message.content for message in messages], expected)
        loop = asyncio.get_running_loop()
        ids = await loop.run_in_executor(self._encoder, encode_prompt, self._tokenizer, messages)
        if len(ids) >= self._room:
            raise InputError("messages", f"{len(ids)} tokens", expected)
        # The door by which vLLM takes a conversation that somebody else has encoded.
        request = {**request, "kv_transfer_params": {"prompt_token_ids": ids}}
        return await self._chat(ChatCompletionRequest(**request))

    def _require_bounds(self, field: str, texts: Sequence[str], expected: str) -> None:
        """Refuse texts that cannot fit, before a tokenizer spends seconds on them."""
        excess = self._bounds.excess(texts)
        if excess is not None:
            raise InputError(field, excess, expected)

    async def check_health(self) -> None:
        """Raise if the engine is dead."""
        await self._engine.check_health()

    def shutdown(self) -> None:
        """End the engine's process."""
        self._engine.shutdown()


def engine_arguments(settings: PolicyServiceSettings) -> AsyncEngineArgs:
    """The engine of a policy, set as the one that PPO samples from."""
    return AsyncEngineArgs(
        model=settings.path,
        served_model_name=[POLICY],
        seed=secrets.randbelow(2**31) if settings.seed is None else settings.seed,
        dtype=settings.precision,
        # vLLM's own default is None, too, whatever it declares.
        max_model_len=settings.max_model_len,  # type: ignore[arg-type]
        max_num_seqs=settings.max_num_seqs,
        max_logprobs=MAX_LOGPROBS,
        # Cut prompts, cached prefixes and raw logprobs: see actors/sampling/rollout_worker.py.
        enable_chunked_prefill=False,
        enable_prefix_caching=False,
        logprobs_mode="processed_logprobs",
        enforce_eager=settings.enforce_eager,
        gpu_memory_utilization=settings.gpu_memory_utilization,
        tensor_parallel_size=settings.tensor_parallel_size,
        distributed_executor_backend="uni" if settings.tensor_parallel_size == 1 else "mp",
        # What a request leaves out is OpenAI's default, not one that lies beside the model.
        generation_config="vllm",
        enable_log_requests=False,
    )


def _error(error: Exception, request: dict[str, Any]) -> dict[str, Any]:
    if isinstance(error, InputError):
        return _said(400, str(error), error.field)
    return _refused(create_error_response(error), request)


def _refused(refusal: ErrorResponse, request: dict[str, Any]) -> dict[str, Any]:
    error = refusal.error
    # vLLM has names of its own for what it made of the prompt, and none for some errors.
    content = "messages" if "messages" in request else "prompt"
    return _said(error.code, error.message, error.param if error.param in request else content)


def _said(status: int, message: str, param: str) -> dict[str, Any]:
    return {"error": {"status": status, "message": message, "param": param}}
