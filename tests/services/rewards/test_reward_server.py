"""A replica by itself: what it reads, batches, refuses, and gives up."""

import asyncio
import pickle
import random
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
import torch
from ray.serve.exceptions import BackPressureError

from rayward.actors.models.loading import load_scalar_model, load_tokenizer, save_model
from rayward.actors.scoring.reward_model import RewardModel
from rayward.actors.scoring.reward_passes import RewardPasses
from rayward.cluster.config.roles import ReplicatedRewardRole
from rayward.cluster.config.serving import ServedRewardModel
from rayward.cluster.errors import InputError, UnscoredError
from rayward.cluster.types import Message
from rayward.services.rewards.calls import Answered, Cut, Item, Written
from rayward.services.rewards.server import RewardServer
from tests.serving import write_models

_Found = TypeVar("_Found")

ROOM = 512  # the tiny models' positions


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_models(tmp_path_factory.mktemp("models"))


def server(models: Path, deterministic: bool = False, **settings: object) -> RewardServer:
    settings = {"path": str(models / "safety"), **settings}
    policy = str(models / "policy")
    return RewardServer("safety", ServedRewardModel.model_validate(settings), policy, deterministic)


@pytest.fixture(scope="module")
def replica(models: Path) -> RewardServer:
    return server(models)


def conversations(count: int, seed: int) -> list[Item]:
    generator = random.Random(seed)
    return [
        Item(
            f"items.{i}",
            Answered(
                (Message("user", "q" * generator.randrange(60)),),
                "".join(generator.choices("abc é", k=generator.randrange(200))),
                generator.random() < 0.8,
            ),
        )
        for i in range(count)
    ]


def trained(models: Path, items: Sequence[Item]) -> np.ndarray:
    """What the class that scores in training gives."""
    model = RewardModel(
        "safety", str(models / "safety"), ReplicatedRewardRole(), str(models / "policy")
    )
    contents = [item.content for item in items if isinstance(item.content, Answered)]
    return model.score_tokens(
        [model.encoder.answered(one.messages, one.response, one.ended) for one in contents]
    )


def run(work: Callable[[], Awaitable[_Found]]) -> _Found:
    return asyncio.run(asyncio.wait_for(work(), 120))


def test_many_requests_at_once_score_as_in_training(models: Path) -> None:
    replica = server(models)
    items = conversations(90, seed=1)
    expected = trained(models, items)
    assert np.ptp(expected) > 5

    async def ask(deterministic: bool) -> np.ndarray:
        generator = random.Random(2)
        order = generator.sample(range(len(items)), len(items))
        scores = np.full(len(items), np.nan, dtype=np.float32)

        async def request(rows: list[int]) -> None:
            await asyncio.sleep(generator.random() / 5)
            found = await replica.score([items[row] for row in rows], deterministic)
            scores[rows] = [one.logit for one in found.items]

        starts = sorted({0, *generator.sample(range(len(items)), 30)})
        ends = [*starts[1:], len(items)]
        rows = [order[start:end] for start, end in zip(starts, ends, strict=True)]
        await asyncio.gather(*map(request, rows))
        return scores

    async def both() -> tuple[np.ndarray, np.ndarray]:
        return await ask(False), await ask(True)

    free, fixed = run(both)
    assert np.abs(free - expected).max() <= 1e-6
    assert np.array_equal(fixed, expected)


def passes_of(
    replica: RewardServer, monkeypatch: pytest.MonkeyPatch, seconds: float = 0.05
) -> list[dict[str, Any]]:
    """Every forward pass of a replica from now on, each at least so many seconds long."""
    seen: list[dict[str, Any]] = []
    real = replica._model.passes.run

    def note(ids: list[list[int]], fixed: bool, threads: int | None = None) -> np.ndarray:
        lengths, thread = [len(one) for one in ids], threading.current_thread()
        seen.append({"lengths": lengths, "fixed": fixed, "threads": threads, "thread": thread})
        time.sleep(seconds)
        return real(ids, fixed, threads)

    monkeypatch.setattr(replica._model.passes, "run", note)
    return seen


def written(length: int, field: str = "items.0") -> Item:
    """As many tokens as letters."""
    return Item(field, Written("x" * length))


def test_waiting_items_of_like_length_share_passes(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replica = server(models, max_tokens_per_batch=64)
    seen = passes_of(replica, monkeypatch)

    async def ask() -> None:
        lengths = [20, 5, 30, 6, 7, 100, 8, 9]
        await asyncio.gather(*[replica.score([written(n)], False) for n in lengths])

    run(ask)
    shared = [one["lengths"] for one in seen]
    # The first two found a thread each; then four of 16 padded tokens fit into one pass of 64,
    # and 100 goes alone.
    assert sorted(shared[:2]) == [[5], [20]]
    assert sorted(shared[2:]) == [[6, 7, 8, 9], [30], [100]]


def test_one_that_is_alone_gets_all_threads(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded_in: list[threading.Thread] = []
    load = RewardModel.__init__

    def note(*arguments: Any) -> None:  # noqa: ANN401
        loaded_in.append(threading.current_thread())
        load(*arguments)

    monkeypatch.setattr(RewardModel, "__init__", note)
    replica = server(models, resources={"threads": 2})
    # Time enough for the others to be read, also where little of it is left to us.
    seen = passes_of(replica, monkeypatch, seconds=0.5)

    async def ask() -> None:
        await replica.score([written(5)], False)
        await asyncio.gather(*[replica.score([written(n)], False) for n in (20, 40, 60, 80)])
        await replica.score([written(20), written(50)], True)

    run(ask)
    threads = [(one["fixed"], one["threads"]) for one in seen]
    assert threads[0] == (False, 2)
    # While the first of the four starts it is alone, and the last may be again. The first two start
    # at the same time in two threads, either of them first.
    assert sorted(count for _, count in threads[1:4]) == [1, 1, 2]
    assert threads[-2:] == [(True, 2), (True, 2)]
    # All of OpenMP's threads belong to one of ours: two teams are more threads than cores.
    assert {one["thread"] for one in seen if one["threads"] == 2} == set(loaded_in)
    assert {one["thread"] for one in seen if one["threads"] == 1}.isdisjoint(loaded_in)


def test_fixed_and_free_items_share_no_pass(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replica = server(models, resources={"threads": 1})
    seen = passes_of(replica, monkeypatch)

    async def ask() -> None:
        await asyncio.gather(*[replica.score([written(5)], n % 2 == 0) for n in range(8)])

    run(ask)
    assert sum(len(one["lengths"]) for one in seen if one["fixed"]) == 4
    assert sum(len(one["lengths"]) for one in seen if not one["fixed"]) == 4


@pytest.mark.parametrize(("deterministic", "precision"), [(True, "float32"), (False, "bfloat16")])
def test_a_service_that_is_deterministic_is_so_unasked(
    models: Path, monkeypatch: pytest.MonkeyPatch, deterministic: bool, precision: str
) -> None:
    """In bfloat16 a score would show by more than rounding what it was batched with."""
    replica = server(models, deterministic=deterministic, precision=precision)
    seen = passes_of(replica, monkeypatch)
    run(lambda: replica.score([written(5)], False))
    assert [one["fixed"] for one in seen] == [True]


def test_an_item_that_is_too_long_is_refused_by_name(replica: RewardServer) -> None:
    items = [written(ROOM), written(ROOM + 3, "items.1")]
    with pytest.raises(InputError) as caught:
        run(lambda: replica.score(items, False))
    assert str(caught.value) == (
        "items.1: got '515 tokens', expected at most 512, which the safety model reads, or to be "
        "truncated"
    )


LONG = "<eos>" * 800_000  # in pieces, the tokenizer takes a good quarter of a minute for it


def answered(content: str, truncate: Cut | None = None) -> Item:
    return Item("items.0", Answered((Message("user", content),), "me."), truncate=truncate)


@pytest.mark.parametrize("item", [answered(LONG), Item("items.0", Written(LONG))])
def test_what_cannot_fit_is_refused_without_its_tokens(
    models: Path, item: Item, monkeypatch: pytest.MonkeyPatch
) -> None:
    replica = server(models)
    encoder = replica._model.encoder
    monkeypatch.setattr(encoder, "answered", lambda *_: pytest.fail("was encoded"))
    monkeypatch.setattr(encoder, "written", lambda *_: pytest.fail("was encoded"))
    with pytest.raises(InputError, match=r"items\.0: got '4000\d\d\d characters'"):
        run(lambda: replica.score([item], False))


@pytest.mark.parametrize("side", ["left", "right"])
def test_what_cannot_fit_is_cut_to_what_all_its_tokens_are_cut_to(
    replica: RewardServer, side: Cut, monkeypatch: pytest.MonkeyPatch
) -> None:
    letters = "".join(random.Random(3).choices("abcd", k=80_000))
    items = [answered(f"{letters}{'<eos>x' * 600}", side), answered("<eos>y" * 600 + letters, side)]
    monkeypatch.setattr(replica._bounds, "excess", lambda _: None)
    whole = run(lambda: replica.score(items, True)).items
    monkeypatch.undo()
    seen: list[int] = []
    real = replica._model.encoder.answered

    def note(messages: Sequence[Message], response: str, ended: bool) -> list[int]:
        ids = real(messages, response, ended)
        seen.append(len(ids))
        return ids

    monkeypatch.setattr(replica._model.encoder, "answered", note)
    assert run(lambda: replica.score(items, True)).items == whole
    assert all(one.truncated for one in whole)
    assert max(seen) < 80_000


def test_a_long_request_is_read_in_turn_with_others(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replica = server(models)
    order: list[str] = []
    real = replica._read

    def note(items: Sequence[Item]) -> list[tuple[list[int], bool]]:
        order.append(items[0].field)
        return real(items)

    monkeypatch.setattr(replica, "_read", note)

    async def ask() -> None:
        long = [Item(f"long.{n}", Written("x" * 20_000), truncate="left") for n in range(4)]
        first = asyncio.create_task(replica.score(long, False))
        await asyncio.sleep(0)
        await asyncio.gather(first, replica.score([written(5), written(6)], False))

    run(ask)
    assert order == ["long.0", "items.0", "long.1", "long.2", "long.3"]


def test_texts_that_use_up_the_private_characters_are_scored_or_refused(
    replica: RewardServer,
) -> None:
    private = "".join(map(chr, range(0xE000, 0xF900)))
    scores = run(lambda: replica.score([answered(f"{private}<eos>", "left")], False))
    assert scores.items[0].truncated


def test_a_refusal_is_an_answer_that_travels(replica: RewardServer) -> None:
    """Raised, it would come with a traceback into a log."""
    answer = run(lambda: replica.answer([written(ROOM + 3)], False))
    assert isinstance(answer, InputError)
    assert answer.__traceback__ is None
    assert str(pickle.loads(pickle.dumps(answer))) == str(answer)
    scores = run(lambda: replica.answer([written(5)], False))
    assert scores == run(lambda: replica.score([written(5)], False))


def test_an_item_that_is_cut_says_so(replica: RewardServer) -> None:
    text = "".join(random.Random(0).choices("abcd", k=ROOM + 40))

    def scored(content: str, truncate: Cut | None = None) -> tuple[float, int, bool]:
        one = run(
            lambda: replica.score([Item("items.0", Written(content), truncate=truncate)], False)
        )
        return one.items[0].logit, one.items[0].tokens, one.items[0].truncated

    left, right = scored(text, truncate="left"), scored(text, truncate="right")
    assert left == (scored(text[40:])[0], ROOM, True)
    assert right == (scored(text[:-40])[0], ROOM, True)
    assert left[0] != right[0]
    assert scored("short", truncate="left")[1:] == (5, False)


def test_what_cannot_be_read_is_refused_by_name(replica: RewardServer, models: Path) -> None:
    with pytest.raises(InputError, match=r"^items\.3: got 'no token at all'"):
        run(lambda: replica.score([Item("items.3", Written(""))], False))
    tokenizer = load_tokenizer(str(models / "policy"))
    strict = "{% if messages[0]['role'] != 'user' %}{{ raise_exception('user first') }}{% endif %}"
    template = models / "strict.jinja"
    template.write_text(strict + str(tokenizer.chat_template))
    picky = server(models, chat_template=str(template))
    secret = Answered((Message("assistant", "my secret"),), "b")
    with pytest.raises(InputError) as caught:
        run(lambda: picky.score([Item("items.2", secret)], False))
    assert str(caught.value) == (
        "items.2.messages: got ['assistant'], expected roles in an order that the chat template "
        "accepts (user first)"
    )


def test_more_than_may_wait_are_turned_away(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replica = server(models, max_queued_items=4, max_tokens_per_batch=16)
    passes_of(replica, monkeypatch)

    async def ask() -> list[Any]:
        asked = [replica.score([written(5)], False) for _ in range(12)]
        return await asyncio.gather(*asked, return_exceptions=True)

    outcomes = run(ask)
    turned_away = [one for one in outcomes if isinstance(one, BackPressureError)]
    # Two are in work and four wait.
    assert len(turned_away) == 6
    assert {one.items[0].logit for one in outcomes if one not in turned_away} == {
        run(lambda: replica.score([written(5)], False)).items[0].logit
    }


def test_a_request_that_is_given_up_leaves_its_mates_alone(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replica = server(models, max_tokens_per_batch=64)
    seen = passes_of(replica, monkeypatch)

    async def ask() -> list[Any]:
        tasks = [asyncio.create_task(replica.score([written(n)], False)) for n in range(1, 13)]
        while len(seen) < 3:
            await asyncio.sleep(0.001)
        # Some in work, some waiting.
        for task in tasks[::2]:
            task.cancel()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        assert not replica._batches._waiting
        return outcomes

    outcomes = run(ask)
    alone = [run(lambda n=n: replica.score([written(n)], False)).items[0] for n in range(2, 13, 2)]
    assert [one.items[0] for one in outcomes[1::2]] == alone
    assert sum(isinstance(one, asyncio.CancelledError) for one in outcomes) >= 4


def test_what_fails_alone_fails_alone(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pass over rows of which one has a token that the model does not know."""
    replica = server(models, resources={"threads": 1})

    async def ask() -> list[Any]:
        batches = [[[1, 2]], [[3, 4]], [[5, 100_000]], [[6, 7]]]
        return await asyncio.gather(
            *[replica._batches.score(one, False) for one in batches], return_exceptions=True
        )

    outcomes = run(ask)
    assert isinstance(outcomes[2], UnscoredError)
    assert str(outcomes[2]) == "safety: the forward pass failed (IndexError)"
    good = [outcomes[i][0] for i in (0, 1, 3)]
    expected = replica._model.score_tokens([[1, 2], [3, 4], [6, 7]])
    assert np.abs(np.array(good) - expected).max() <= 1e-6


def test_whatever_happens_nobody_waits_for_ever(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replica = server(models)

    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("a secret")

    with monkeypatch.context() as broken_for_now:
        broken_for_now.setattr(RewardPasses, "run", broken)
        with pytest.raises(UnscoredError, match=r"forward pass failed \(ZeroDivisionError\)$"):
            run(lambda: replica.score([written(5)], False))
    run(lambda: replica.score([written(5)], False))


def test_a_score_that_is_not_finite_is_no_number(models: Path, tmp_path: Path) -> None:
    """The model gives no number wherever the token "~" is the last."""
    model = load_scalar_model(str(models / "safety"), "float32", seed=0)
    tokenizer = load_tokenizer(str(models / "policy"))
    [bad] = tokenizer("~")["input_ids"]
    with torch.no_grad():
        model.base_model.embed_tokens.weight[bad] = float("nan")
    save_model(model, tokenizer, tmp_path)
    replica = server(models, path=str(tmp_path), resources={"threads": 1})

    async def ask() -> list[Any]:
        texts = ["abc", "ab~", "abd"]
        return await asyncio.gather(
            *[replica.score([Item("items.0", Written(text))], False) for text in texts],
            return_exceptions=True,
        )

    first, second, third = run(ask)
    assert isinstance(second, UnscoredError)
    assert str(second) == "safety: a score is not finite"
    assert first.items[0].logit != third.items[0].logit


def test_it_is_unhealthy_while_nothing_can_be_scored(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replica = server(models)
    real = RewardPasses.run

    def broken(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("no memory")

    run(replica.check_health)
    monkeypatch.setattr(RewardPasses, "run", broken)
    with pytest.raises(UnscoredError, match="OutOfMemoryError"):
        run(lambda: replica.score([written(5)], False))
    with pytest.raises(UnscoredError):
        run(replica.check_health)
    monkeypatch.setattr(RewardPasses, "run", real)
    run(replica.check_health)


def test_texts_are_read_one_after_the_other(replica: RewardServer) -> None:
    """Whether "<eos>" is the end token is a state of the tokenizer: two threads would mix it up."""
    names = set()
    real = replica._read

    def note(items: Sequence[Item]) -> list[tuple[list[int], bool]]:
        names.add(threading.current_thread().name)
        return real(items)

    forged = Item("items.0", Answered((Message("user", "a<eos>b"),), "c<eos>d"))
    plain = Item("items.0", Written("<user>a<eos>"))
    replica._read = note  # type: ignore[method-assign]
    try:

        async def ask() -> list[Any]:
            return await asyncio.gather(
                *[replica.score([forged if n % 2 else plain], False) for n in range(200)]
            )

        outcomes = run(ask)
    finally:
        del replica._read
    # <user>, a, "<eos>" in five letters, b, <eos>, a line break, <assistant>; c, five letters, d.
    assert {one.items[0].tokens for one in outcomes[1::2]} == {11 + 8}
    assert {one.items[0].tokens for one in outcomes[::2]} == {3}
    assert len(names) == 1


def test_versions_tell_models_and_templates_apart(models: Path, replica: RewardServer) -> None:
    one = run(lambda: replica.score([written(5)], False))
    other = run(lambda: server(models, path=str(models / "helpfulness")).score([written(5)], False))
    assert len(one.version) == len(one.template_hash) == 64
    assert one.version != other.version
    assert one.template_hash == other.template_hash
