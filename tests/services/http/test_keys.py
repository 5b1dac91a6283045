"""Keys: what is stored, who is found, and what a stranger can learn from the time it takes."""

import hashlib
import hmac
import json
import logging
import os
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from rayward.cluster.errors import InputError
from rayward.services.client.keys_command import app as keys_app
from rayward.services.http import keys
from rayward.services.http.keys import SCOPES, KeyRing, create_key, read_keys, revoke_key


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "keys.json"


def wrong_secret(token: str) -> str:
    return token[:-1] + ("A" if token[-1] != "A" else "B")


def unknown_id(token: str) -> str:
    return token[:3] + ("0" * 12 if token[3:15] != "0" * 12 else "1" * 12) + token[15:]


def test_a_key_is_found_and_its_secret_is_nowhere(file: Path) -> None:
    key, token = create_key(file, ["generate", "score"], "trainer", 30)
    prefix, key_id, secret = token.split("_", 2)
    assert (prefix, key_id, len(secret)) == ("rw", key.id, 43)
    assert KeyRing(file).find(token) == key
    assert (key.scopes, key.name, key.requests_per_minute) == (("score", "generate"), "trainer", 30)
    text = file.read_text()
    assert secret not in text
    assert json.loads(text)["keys"][0]["sha256"] == hashlib.sha256(secret.encode()).hexdigest()
    assert file.stat().st_mode & 0o777 == 0o600
    # Nor does a key that is printed or logged tell its hash.
    assert key.sha256 not in repr(key)


def test_admin_may_do_everything_and_others_what_they_were_given(file: Path) -> None:
    admin, _ = create_key(file, ["admin"])
    reader, _ = create_key(file, ["jobs:read"])
    assert [scope for scope in SCOPES if admin.allows(scope)] == list(SCOPES)
    assert [scope for scope in SCOPES if reader.allows(scope)] == ["jobs:read"]


def test_strangers_are_not_found(file: Path) -> None:
    _, token = create_key(file, ["score"])
    ring = KeyRing(file)
    assert ring.find(token) is not None
    for stranger in (
        wrong_secret(token),
        unknown_id(token),
        token + "A",
        token[:-1],
        token.upper(),
        f" {token}",
        f"{token}\n",
        "",
        "rw__",
        "\udcff\0é" * 40,
    ):
        assert ring.find(stranger) is None


_ANY_KEY = st.from_regex(r"\Arw_[0-9a-f]{12}_[A-Za-z0-9_-]{43}\Z")


@given(token=st.one_of(st.text(), _ANY_KEY, st.binary().map(lambda raw: raw.decode("latin-1"))))
def test_no_made_up_text_is_a_key(tmp_path_factory: pytest.TempPathFactory, token: str) -> None:
    file = tmp_path_factory.getbasetemp() / "made-up.json"
    if not file.exists():
        create_key(file, ["admin"])
    assert KeyRing(file).find(token) is None


@given(secret=st.text(alphabet="_-aB9", min_size=43, max_size=43))
def test_any_secret_can_be_told_from_its_id(
    tmp_path_factory: pytest.TempPathFactory, secret: str
) -> None:
    """The secret may hold the sign that the parts are joined by."""
    file = tmp_path_factory.getbasetemp() / "told.json"
    stored = {
        "id": "0123456789ab",
        "scopes": ["score"],
        "created": "2026-01-01T00:00:00Z",
        "sha256": hashlib.sha256(secret.encode()).hexdigest(),
    }
    file.write_text(json.dumps({"keys": [stored]}))
    assert KeyRing(file).find(f"rw_0123456789ab_{secret}") is not None


def test_a_revoked_key_is_refused_without_a_restart(file: Path) -> None:
    key, token = create_key(file, ["score"])
    _, other = create_key(file, ["score"])
    ring = KeyRing(file)
    assert ring.find(token) is not None
    revoked = revoke_key(file, key.id)
    assert ring.find(token) is None
    assert ring.find(other) is not None
    # Once is for good, and a whole key names itself.
    assert revoke_key(file, token) == revoked
    assert [one.revoked for one in read_keys(file)] == [revoked.revoked, None]


def test_a_new_key_is_known_without_a_restart(file: Path) -> None:
    create_key(file, ["score"])
    ring = KeyRing(file)
    ring.require()
    key, token = create_key(file, ["score"])
    assert ring.find(token) == key


@pytest.mark.parametrize("spoiled", [None, "", "{", "[]", '{"keys": [{"id": "x"}]}', '{"key": []}'])
def test_without_a_good_file_nobody_gets_in(
    file: Path, spoiled: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    _, token = create_key(file, ["admin"])
    ring = KeyRing(file)
    assert ring.find(token) is not None
    good = file.read_bytes()
    file.unlink()
    if spoiled is not None:
        file.write_text(spoiled)
    with caplog.at_level(logging.ERROR):
        for _ in range(5):
            assert ring.find(token) is None
    # Said once, not for each request.
    assert [str(file) in record.message for record in caplog.records] == [True]
    with pytest.raises(InputError) as caught:
        KeyRing(file).require()
    assert (caught.value.field, caught.value.value) == ("keys.path", str(file))
    file.write_bytes(good)
    assert ring.find(token) is not None


def test_an_error_about_a_file_does_not_show_what_it_holds(file: Path) -> None:
    key, _ = create_key(file, ["admin"])
    file.write_text(file.read_text().replace('"admin"', '"emperor"'))
    with pytest.raises(InputError) as caught:
        read_keys(file)
    assert "keys.0.scopes.0" in str(caught.value)
    assert key.sha256 not in str(caught.value)
    assert "emperor" not in str(caught.value)


def test_two_keys_of_one_id_are_no_key_file(file: Path) -> None:
    create_key(file, ["score"])
    document = json.loads(file.read_text())
    file.write_text(json.dumps({"keys": document["keys"] * 2}))
    with pytest.raises(InputError, match="two keys have the same id"):
        read_keys(file)


def test_a_mounted_kubernetes_secret(tmp_path: Path) -> None:
    """Kubernetes changes a mounted secret by turning a link to another folder; nothing in it can
    be written."""
    made = tmp_path / "made.json"
    key, token = create_key(made, ["score"])
    mount = tmp_path / "mount"
    for version in ("first", "second"):
        (mount / version).mkdir(parents=True)
        (mount / version / "keys.json").write_bytes(made.read_bytes())
        (mount / version).chmod(0o555)
        revoke_key(made, key.id)
    (mount / "..data").symlink_to("first")
    (mount / "keys.json").symlink_to("..data/keys.json")
    ring = KeyRing(mount / "keys.json")
    assert ring.find(token) is not None
    (mount / "..new").symlink_to("second")
    (mount / "..new").rename(mount / "..data")
    assert ring.find(token) is None
    assert [entry.name for entry in (mount / "first").iterdir()] == ["keys.json"]


def test_a_key_is_made_and_revoked_in_the_file_that_a_link_leads_to(tmp_path: Path) -> None:
    """A link that was replaced would leave the key as it is in the file that a service reads."""
    (tmp_path / "etc").mkdir()
    real, link = tmp_path / "etc" / "keys.json", tmp_path / "keys.json"
    link.symlink_to(real)
    _, first = create_key(link, ["score"])
    ring = KeyRing(real)
    key, token = create_key(link, ["score"])
    assert ring.find(token) == key
    revoke_key(link, token)
    assert ring.find(token) is None
    assert ring.find(first) is not None
    assert link.is_symlink()
    # Whoever comes by the link and whoever comes by the file wait for the same lock.
    assert sorted(path.name for path in (tmp_path / "etc").iterdir()) == [
        ".keys.json.lock",
        "keys.json",
    ]
    assert [path.name for path in tmp_path.iterdir() if path.name != "etc"] == ["keys.json"]


def test_links_that_go_round_in_a_circle_are_no_place_to_write_to(tmp_path: Path) -> None:
    link = tmp_path / "keys.json"
    link.symlink_to(link)
    with pytest.raises(InputError, match="--file"):
        create_key(link, ["score"])


def test_a_file_that_others_may_read_stays_so(file: Path) -> None:
    create_key(file, ["score"])
    file.chmod(0o640)
    key, _ = create_key(file, ["score"])
    assert file.stat().st_mode & 0o777 == 0o640
    revoke_key(file, key.id)
    assert file.stat().st_mode & 0o777 == 0o640


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_root_leaves_a_file_to_its_owner(file: Path) -> None:
    """Else a service of another user could no longer read it, nor its owner change it."""
    create_key(file, ["score"])
    os.chown(file, 4711, 4712)
    key, _ = create_key(file, ["score"])
    revoke_key(file, key.id)
    for path in (file, file.with_name(f".{file.name}.lock")):
        assert (path.stat().st_uid, path.stat().st_gid) == (4711, 4712)
        assert path.stat().st_mode & 0o777 == 0o600


def test_keys_that_are_made_at_once_are_all_kept(file: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: create_key(file, ["score"]), range(24)))
    ring = KeyRing(file)
    assert [ring.find(token) for _, token in made] == [key for key, _ in made]
    assert len(read_keys(file)) == 24


def strangers_and_friend(file: Path) -> dict[str, str]:
    """Every way of being refused, and one of being let in."""
    _, token = create_key(file, ["score"])
    gone, revoked = create_key(file, ["score"])
    revoke_key(file, gone.id)
    return {
        "known": token,
        "wrong secret": wrong_secret(token),
        "unknown id": unknown_id(token),
        "malformed": "x" * len(token),
        "revoked": revoked,
    }


def test_every_token_costs_the_same_work(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One comparison in constant time of 64 digits, after one hash of 43 bytes."""
    tokens = strangers_and_friend(file)
    ring = KeyRing(file)
    ring.find("")  # reads the file
    work: list[tuple[str, int, int]] = []
    compare, sha256 = hmac.compare_digest, hashlib.sha256

    def counted_compare(a: str, b: str) -> bool:
        work.append(("compare", len(a), len(b)))
        return compare(a, b)

    def counted_hash(data: bytes) -> object:
        work.append(("hash", len(data), 0))
        return sha256(data)

    monkeypatch.setattr(keys.hmac, "compare_digest", counted_compare)
    monkeypatch.setattr(keys.hashlib, "sha256", counted_hash)
    done = {}
    for kind, token in tokens.items():
        work.clear()
        assert (ring.find(token) is not None) == (kind == "known")
        done[kind] = list(work)
    assert done == {kind: [("hash", 43, 0), ("compare", 64, 64)] for kind in tokens}


def test_the_time_tells_nothing(file: Path) -> None:
    """Coarse, because other work disturbs the clock: medians of many, within a factor of two."""
    tokens = strangers_and_friend(file)
    ring = KeyRing(file)
    took: dict[str, list[int]] = {kind: [] for kind in tokens}
    for _ in range(3000):
        for kind, token in tokens.items():
            start = time.perf_counter_ns()
            ring.find(token)
            took[kind].append(time.perf_counter_ns() - start)
    medians = {kind: statistics.median(times) for kind, times in took.items()}
    assert max(medians.values()) < 2 * min(medians.values()), medians


def test_the_command_makes_lists_and_revokes(file: Path) -> None:
    run = CliRunner().invoke
    made = run(
        keys_app,
        ["create", "--scope", "score", "--scope", "jobs:read", "--name", "ci", "--file", str(file)],
    )
    token = made.stdout.strip()
    key = KeyRing(file).find(token)
    assert key is not None
    assert token not in made.stderr
    assert key.id in made.stderr
    limited = run(
        keys_app,
        ["create", "--scope", "admin", "--requests-per-minute", "7"],
        env={"RAYWARD_KEYS": str(file)},
    )
    other = KeyRing(file).find(limited.stdout.strip())
    assert other is not None
    assert other.requests_per_minute == 7
    revoked = run(keys_app, ["revoke", key.id, "--file", str(file)])
    assert (revoked.stdout, revoked.exit_code) == ("", 0)
    listed = run(keys_app, ["list", "--file", str(file)]).stdout.splitlines()
    today = f"{key.created:%Y-%m-%d}"
    assert [line.split("\t") for line in listed] == [
        [key.id, f"revoked {today}", "score,jobs:read", "", "ci"],
        [other.id, f"made {today}", "admin", "7/min", ""],
    ]
    assert KeyRing(file).find(token) is None


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        (["create", "--scope", "emperor"], "--scope"),
        (["create", "--scope", "score", "--requests-per-minute", "0"], "--requests-per-minute"),
        (["create", "--scope", "score", "--name", "a\nb"], "--name"),
        (["revoke", "000000000000"], "ID"),
    ],
)
def test_the_command_names_what_is_wrong(file: Path, arguments: list[str], field: str) -> None:
    create_key(file, ["score"])
    before = file.read_bytes()
    result = CliRunner().invoke(keys_app, [*arguments, "--file", str(file)])
    assert isinstance(result.exception, InputError)
    assert result.exception.field == field
    assert file.read_bytes() == before


def test_a_file_that_is_not_there_is_named_and_not_made(tmp_path: Path) -> None:
    for arguments in (["list"], ["revoke", "000000000000"]):
        file = tmp_path / "none.json"
        result = CliRunner().invoke(keys_app, [*arguments, "--file", str(file)])
        assert isinstance(result.exception, InputError)
        assert result.exception.value == str(file)
    assert list(tmp_path.iterdir()) == []


def test_the_command_starts_without_the_service() -> None:
    code = (
        "import sys, rayward.services.client.keys_command\n"
        "print([one for one in ('torch', 'ray', 'fastapi', 'limits') if one in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).resolve().parents[3],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "[]\n"
