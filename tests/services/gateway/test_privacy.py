"""No text of a prompt or an answer, and no key, is in any log: not of refused requests either."""

from collections.abc import Iterator
from pathlib import Path

from tests.serving import Served

SECRET = "zanzibar-marmalade-7431"
BAD_KEY = "rw_quagmire0_thisisnokeyatall1234567890"


def asked(text: str) -> dict[str, object]:
    return {"messages": [{"role": "user", "content": text}], "response": f"{text} answered"}


def logs(served: Served) -> Iterator[tuple[Path, str]]:
    yield served.log, served.log.read_text()
    for path in served.ray_logs.rglob("*"):
        if path.is_file() and "/logs/" in str(path):
            yield path, path.read_text(errors="replace")


def test_logs_hold_no_text_and_no_key(served: Served) -> None:
    with served.client("score", "generate") as client:
        good = {"items": [asked(SECRET)]}
        assert client.post("/v1/score", json=good).status_code == 200
        chat = {"model": "policy", "messages": good["items"][0]["messages"], "max_tokens": 4}  # type: ignore[index]
        assert client.post("/v1/chat/completions", json=chat).status_code == 200
        raw = {"model": "policy", "prompt": SECRET, "max_tokens": 4}
        assert client.post("/v1/completions", json=raw).status_code == 200
        for path, body in (
            ("/get_reward", {"query": [SECRET], "prompts": [SECRET], "labels": [""]}),
            ("/classify", {"model": "safety", "input": SECRET}),
            ("/v1/embeddings", {"model": "safety", "input": [SECRET]}),
            ("/predict", {"inputs": SECRET}),
        ):
            assert client.post(path, json=body).status_code == 200, path
        # What is refused, and what cannot be scored, is not told either.
        long = {"items": [asked(SECRET * 200)]}
        assert client.post("/v1/score", json=long).status_code == 422
        assert client.post("/v1/score", json={"items": [{"text": [SECRET]}]}).status_code == 422
        too_long = {**chat, "messages": [{"role": "user", "content": SECRET * 200}]}
        assert client.post("/v1/chat/completions", json=too_long).status_code == 400
        job = {"kind": "recipe", "config": {"name": SECRET}}
        assert client.post("/v1/jobs", json=job).status_code == 403
        bad = {"Authorization": f"Bearer {BAD_KEY}"}
        assert client.post("/v1/score", json=good, headers=bad).status_code == 401
    with served.client("jobs:write") as client:
        assert client.post("/v1/jobs", json=job).status_code == 422
    found = [
        (path.name, word)
        for path, text in logs(served)
        for word in (SECRET, "quagmire0", *(key[-20:] for key in served.keys.values()))
        if word in text
    ]
    assert found == []


def test_the_search_finds_what_is_there(served: Served) -> None:
    """A search that looks in the wrong place would find nothing too."""
    texts = dict(logs(served))
    assert served.url in texts[served.log]
    replicas = [path.name for path in texts if path.name.startswith("replica_")]
    assert any("safety" in name for name in replicas)
    assert any("policy" in name for name in replicas)
