"""The order of prompts, and the cursor that survives a restart."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayward.cluster.errors import InputError
from rayward.cluster.types import Message, Prompt
from rayward.pipelines.ppo.prompt_stream import PromptStream
from rayward.pipelines.run.encoding import EncodedPrompt


def encoded(count: int) -> list[EncodedPrompt]:
    return [
        EncodedPrompt(
            Prompt(str(i), (Message("user", str(i)),), None, None, False, False, "test"), [i]
        )
        for i in range(count)
    ]


def ids(taken: list[EncodedPrompt]) -> list[str]:
    return [one.prompt.id for one in taken]


@given(st.integers(1, 20), st.lists(st.integers(1, 15), min_size=1, max_size=8))
def test_every_epoch_has_every_prompt_once(count: int, takes: list[int]) -> None:
    stream = PromptStream(encoded(count), seed=3)
    drawn = [one for take in takes for one in ids(stream.take(take))]
    for start in range(0, len(drawn) - count + 1, count):
        assert sorted(drawn[start : start + count]) == sorted(map(str, range(count)))


@given(st.integers(1, 20), st.integers(0, 50), st.integers(1, 30))
def test_a_restored_stream_goes_on_where_it_was(count: int, before: int, after: int) -> None:
    stream = PromptStream(encoded(count), seed=5)
    stream.take(before)
    state = json.loads(json.dumps(stream.state()))
    restored = PromptStream(encoded(count), seed=5)
    restored.restore(state)
    assert ids(restored.take(after)) == ids(stream.take(after))


def test_a_prompt_added_between_sessions_draws_none_twice() -> None:
    stream = PromptStream(encoded(6), seed=1)
    first = ids(stream.take(4))
    restored = PromptStream(encoded(8), seed=1)
    restored.restore(stream.state())
    rest = ids(restored.take(4))
    assert sorted(first + rest) == sorted(map(str, range(8)))


def test_the_seed_decides_the_order() -> None:
    one, same, other = (ids(PromptStream(encoded(30), seed).take(30)) for seed in (1, 1, 2))
    assert one == same != other


def test_no_prompts_is_an_input_error() -> None:
    with pytest.raises(InputError, match="at least one training prompt"):
        PromptStream([], seed=0)
