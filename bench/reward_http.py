"""Reward scoring over HTTP against the bare model, a plain FastAPI handler, and vLLM's server.

    python bench/reward_http.py [--rounds 3] [--vllm]

Makes a random Llama classifier of 20M parameters and texts as long as those of hh-rlhf (log-normal,
median 137 tokens, mean 165), starts the servers, and asks each in turn, round by round, so that
what else the machine does hits all alike. Prints medians over the rounds, and ratios within them.
"""

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import aiohttp
import numpy as np
import torch
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    LlamaConfig,
    LlamaForSequenceClassification,
)

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from rayward.actors.scoring.reward_model import RewardModel
from rayward.cluster.config.serving import ServedRewardModel
from tests.serving import free_port, serving
from tests.tiny import tiny_tokenizer

TEXTS = 160
CLIENTS = 32
ALONE = 60
SEED = 0

_OWN = "offline, the served class/s"
Ask = Callable[[aiohttp.ClientSession, str], Awaitable[float]]


def write_model(folder: Path) -> None:
    """A classifier of 19M weights that reads bytes."""
    tokenizer = tiny_tokenizer()
    torch.manual_seed(SEED)
    config = LlamaConfig(
        vocab_size=8192,
        hidden_size=384,
        intermediate_size=1024,
        num_hidden_layers=9,
        num_attention_heads=6,
        num_key_value_heads=6,
        max_position_embeddings=2048,
        num_labels=1,
        pad_token_id=tokenizer.pad_token_id,
    )
    LlamaForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def make_texts() -> list[str]:
    """Texts of one token a character, all different."""
    draw = np.random.default_rng(SEED)
    lengths = np.exp(draw.normal(np.log(137), 0.6, TEXTS)).clip(16, 1024).astype(int)
    return ["".join(draw.choice(list("abcdefgh ijkl"), n)) for n in lengths]


class Bare:
    """The model by itself, in this process."""

    def __init__(self, path: Path) -> None:
        self._tokenizer = AutoTokenizer.from_pretrained(path)
        self._model = AutoModelForSequenceClassification.from_pretrained(path).eval()

    @torch.inference_mode()
    def rate(self, texts: list[str], rows: int) -> float:
        """Texts a second, sorted by length, so many rows at a time."""
        encoded = [self._tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
        encoded.sort(key=len)
        began = time.perf_counter()
        for start in range(0, len(encoded), rows):
            batch = encoded[start : start + rows]
            longest = max(map(len, batch))
            ids = torch.tensor([[*one, *[0] * (longest - len(one))] for one in batch])
            mask = torch.tensor([[1] * len(one) + [0] * (longest - len(one)) for one in batch])
            self._model.model(input_ids=ids, attention_mask=mask, use_cache=False)
        return len(encoded) / (time.perf_counter() - began)

    @torch.inference_mode()
    def seconds(self, text: str) -> float:
        """Of one forward pass."""
        ids = self._tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
        began = time.perf_counter()
        self._model(input_ids=ids)
        return time.perf_counter() - began


class Own:
    """The reward model as training has it, in this process: the class that is served."""

    def __init__(self, path: Path) -> None:
        settings = ServedRewardModel(path=str(path))
        self._model = RewardModel("safety", settings.path, settings, None)
        self._most = settings.max_tokens_per_batch

    def rate(self, texts: list[str]) -> float:
        """Texts a second, in passes as the service plans them."""
        ids = [self._model.encoder.written(text, False) for text in texts]
        began = time.perf_counter()
        for rows in self._model.passes.plan([len(one) for one in ids], False, self._most):
            self._model.passes.run([ids[row] for row in rows], False)
        return len(ids) / (time.perf_counter() - began)


def asker(url: str, body: Callable[[str], dict], read: Callable[[dict], float]) -> Ask:
    """Asks one server for the score of a text."""

    async def ask(session: aiohttp.ClientSession, text: str) -> float:
        async with session.post(url, json=body(text)) as answer:
            assert answer.status == 200, await answer.text()
            return read(await answer.json())

    return ask


async def many(ask: Ask, texts: list[str]) -> float:
    """Texts a second with `CLIENTS` clients of one text each."""
    waiting = iter(texts)

    async def client(session: aiohttp.ClientSession) -> None:
        for text in waiting:
            await ask(session, text)

    async with aiohttp.ClientSession() as session:
        began = time.perf_counter()
        await asyncio.gather(*(client(session) for _ in range(CLIENTS)))
        return len(texts) / (time.perf_counter() - began)


async def alone(ask: Ask, texts: list[str], bare: Bare) -> tuple[float, float]:
    """Median milliseconds of a request and of the bare forward pass of the same text, in turn."""
    asked, passed = [], []
    async with aiohttp.ClientSession() as session:
        for text in texts[:ALONE]:
            began = time.perf_counter()
            await ask(session, text)
            asked.append(time.perf_counter() - began)
            passed.append(bare.seconds(text))
    return statistics.median(asked) * 1e3, statistics.median(passed) * 1e3


@contextmanager
def started(command: list[str], url: str, environment: dict[str, str]) -> Iterator[None]:
    """A server of its own for the time of the block, once it answers."""
    process = subprocess.Popen(
        command, env={**os.environ, **environment}, stdout=subprocess.DEVNULL, stderr=None
    )
    try:
        asyncio.run(_answers(url, process))
        yield
    finally:
        process.terminate()
        process.wait(60)


async def _answers(url: str, process: subprocess.Popen) -> None:
    async with aiohttp.ClientSession() as session:
        for _ in range(1200):
            assert process.poll() is None, "the server ended"
            try:
                async with session.get(url):
                    return
            except aiohttp.ClientConnectionError:
                await asyncio.sleep(0.25)
    raise TimeoutError(url)


def main() -> None:
    """Measure and print."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--vllm", action="store_true", help="vLLM's own pooling server too")
    chosen = options.parse_args()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        write_model(folder / "model")
        model, texts, bare = str(folder / "model"), make_texts(), Bare(folder / "model")
        document = {"reward": {"safety": {"path": model}}}
        served = stack.enter_context(serving(folder, document))
        asks: dict[str, Ask] = {
            "rayward": asker(
                f"{served.url}/v1/score",
                lambda text: {"items": [{"text": text}]},
                lambda found: found["results"][0]["scores"]["safety"]["logit"],
            )
        }
        port = free_port()
        plain = [sys.executable, str(Path(__file__).with_name("plain_reward_server.py"))]
        stack.enter_context(
            started([*plain, model, str(port)], f"http://127.0.0.1:{port}/docs", {})
        )
        asks["plain"] = asker(
            f"http://127.0.0.1:{port}/score",
            lambda text: {"text": text},
            lambda found: found["score"],
        )
        if chosen.vllm:
            port = free_port()
            asks["vllm"] = asker(
                f"http://127.0.0.1:{port}/classify",
                lambda text: {"model": "m", "input": text, "use_activation": False},
                lambda found: found["data"][0]["probs"][0],
            )
            server = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", model]
            server += ["--runner", "pooling", "--served-model-name", "m", "--port", str(port)]
            server += ["--host", "127.0.0.1", "--dtype", "float32", "--enforce-eager"]
            stack.enter_context(
                started(server, f"http://127.0.0.1:{port}/health", {"VLLM_CPU_KVCACHE_SPACE": "1"})
            )
        own = Own(folder / "model")
        print(json.dumps(measure(asks, texts, bare, own, chosen.rounds), indent=1))


def measure(
    asks: dict[str, Ask], texts: list[str], bare: Bare, own: Own, rounds: int
) -> dict[str, object]:
    """All numbers, each the median over the rounds."""
    found: dict[str, list[float]] = {}

    def note(name: str, value: float) -> None:
        found.setdefault(name, []).append(value)

    for ask in asks.values():
        asyncio.run(many(ask, texts[:32]))  # warm
    bare.rate(texts[:32], 4)
    for _ in range(rounds):
        rates = {rows: bare.rate(texts, rows) for rows in (1, 2, 4, 8)}
        for rows, rate in rates.items():
            note(f"offline, {rows} rows/s", rate)
        note(_OWN, own.rate(texts))
        offline = {"bare": max(rates.values()), "served class": found[_OWN][-1]}
        over_http = {name: asyncio.run(many(ask, texts)) for name, ask in asks.items()}
        for name, rate in over_http.items():
            note(f"{name}, {CLIENTS} clients/s", rate)
            for what, least in offline.items():
                note(f"{name} / offline {what}", rate / least)
        for name in asks.keys() - {"rayward"}:
            note(f"rayward / {name}", over_http["rayward"] / over_http[name])
        for name, ask in asks.items():
            asked, passed = asyncio.run(alone(ask, texts, bare))
            note(f"{name} alone, ms", asked)
            note(f"{name} alone, ms above the bare forward", asked - passed)
            note("bare forward, ms", passed)
    return {name: round(statistics.median(values), 3) for name, values in found.items()}


if __name__ == "__main__":
    main()
