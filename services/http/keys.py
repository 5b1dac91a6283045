"""API keys: a JSON file of hashed secrets, and who a given key is.

A key reads `rw_<id>_<secret>`: the id, 12 hexadecimal digits, is no secret and names the key in
lists and for revoking; the secret is 32 random bytes in URL-safe base64. It may itself hold `_`,
so the parts are told apart by their lengths.
"""

import fcntl
import hashlib
import hmac
import ipaddress
import logging
import os
import re
import secrets
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, Self, get_args

from pydantic import AwareDatetime, Field, ValidationError, model_validator

from rayward.cluster import atomic
from rayward.cluster.config.base import Settings
from rayward.cluster.config.serving import KeySettings
from rayward.cluster.errors import InputError

Scope = Literal["score", "generate", "jobs:read", "jobs:write", "admin"]
SCOPES: tuple[Scope, ...] = get_args(Scope)

_ID_BYTES = 6
_SECRET_BYTES = 32
_SECRET_LENGTH = 43  # of 32 bytes in base64 without padding
_KEY = re.compile(rf"rw_([0-9a-f]{{{2 * _ID_BYTES}}})_([A-Za-z0-9_-]{{{_SECRET_LENGTH}}})")
# What a secret is compared with where there is no key of its id: the hash of nothing known.
_NOBODY = hashlib.sha256(secrets.token_bytes(_SECRET_BYTES)).hexdigest()
_OWNER_ONLY = 0o077  # as a umask
_LONGEST_NAME = 100

_log = logging.getLogger(__name__)


class Key(Settings):
    """What is stored of a key: everything but its secret."""

    id: str = Field(pattern=rf"^[0-9a-f]{{{2 * _ID_BYTES}}}$")
    """Names the key; no secret."""
    name: str | None = Field(default=None, max_length=_LONGEST_NAME)
    """Whose key it is, for a person."""
    scopes: tuple[Scope, ...] = Field(min_length=1)
    """What the key may do."""
    created: AwareDatetime
    """When it was made."""
    revoked: AwareDatetime | None = None
    """When it was revoked, if it was."""
    requests_per_minute: int | None = Field(default=None, ge=1)
    """What it may ask; null: as the service's settings say."""
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$", repr=False)
    """Hash of the secret. The secret holds 256 random bits, which nobody can guess through, so a
    plain hash is right; a slow one, as for passwords, would only slow every request down."""

    def allows(self, scope: Scope) -> bool:
        """Whether the key's scopes hold `scope`; `admin` holds them all."""
        return scope in self.scopes or "admin" in self.scopes


class _KeyFile(Settings):
    """The file."""

    keys: tuple[Key, ...] = ()
    """In the order in which they were made."""

    @model_validator(mode="after")
    def _an_id_names_one_key(self) -> Self:
        if len({key.id for key in self.keys}) < len(self.keys):
            raise ValueError("two keys have the same id")
        return self


class KeyRing:
    """The keys of a file, which is read again when it changes.

    Where the file cannot be read, nobody gets in.

    Args:
        path: the file; it is only read.
    """

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)
        self._keys: dict[str, Key] = {}
        self._seen: tuple[int, int, int] | None = None
        self._complaint: str | None = None  # what was last logged of a file that is no good

    def require(self) -> None:
        """Make sure that the file is there.

        Raises:
            InputError: it is not, or it is no key file.
        """
        read_keys(self._path, "keys.path")

    def find(self, token: str) -> Key | None:
        """The key that `token` is, or None if it is none or was revoked.

        Whatever the token, the same work is done: one hash and one comparison in constant time.
        """
        self._refresh()
        match = _KEY.fullmatch(token)
        key = self._keys.get(match[1]) if match else None
        # Of a well-formed key this is the secret.
        secret = token[-_SECRET_LENGTH:].encode("utf-8", "backslashreplace")
        same = hmac.compare_digest(_hash(secret), _NOBODY if key is None else key.sha256)
        return key if same and key is not None and key.revoked is None else None

    def _refresh(self) -> None:
        # Taken before the file is read: what changes after that is seen the next time.
        signature = self._signature()
        if signature is not None and signature == self._seen:
            return
        try:
            self._keys = {key.id: key for key in read_keys(self._path, "keys.path")}
        except InputError as error:
            self._keys = {}
            self._seen = None
            if str(error) != self._complaint:
                self._complaint = str(error)
                _log.error("nobody is let in: %s", error)
        else:
            self._seen = signature
            self._complaint = None

    def _signature(self) -> tuple[int, int, int] | None:
        """Differs where the file does, also behind the links of a mounted Kubernetes secret."""
        try:
            status = self._path.stat()
        except OSError:
            return None
        return status.st_mtime_ns, status.st_size, status.st_ino


def read_keys(path: Path, field: str = "--file") -> tuple[Key, ...]:
    """The keys of a file.

    Args:
        path: the file.
        field: what names the file to whoever gave it.

    Raises:
        InputError: the file is not there, cannot be read, or is no key file.
    """
    wanted = "a key file, as `rayward keys create` writes it"
    try:
        return _KeyFile.model_validate_json(path.read_bytes()).keys
    except OSError as error:
        raise InputError(field, str(path), f"{wanted} ({error.strerror})") from error
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        place = ".".join(map(str, first["loc"])) or "the file"
        # Not from the error: that one shows what the file holds.
        raise InputError(field, str(path), f"{wanted} ({place}: {first['msg']})") from None


def create_key(
    path: Path,
    scopes: Sequence[str],
    name: str | None = None,
    requests_per_minute: int | None = None,
) -> tuple[Key, str]:
    """Add a key to a file, which is made if need be.

    Returns:
        What was stored, and the key itself, which nobody can have again.

    Raises:
        InputError: a scope is unknown, the name is too long or not printable, the rate is not
            positive; the file is no key file, or cannot be written.
    """
    wrong = [scope for scope in scopes if scope not in SCOPES]
    if wrong or not scopes:
        raise InputError("--scope", wrong[0] if wrong else None, f"one of {', '.join(SCOPES)}")
    if name is not None and not (name.isprintable() and 0 < len(name) <= _LONGEST_NAME):
        raise InputError("--name", name, f"1 to {_LONGEST_NAME} printable characters")
    if requests_per_minute is not None and requests_per_minute < 1:
        raise InputError("--requests-per-minute", requests_per_minute, "at least 1")
    secret = secrets.token_urlsafe(_SECRET_BYTES)
    with _locked(path) as path:
        keys = read_keys(path) if path.exists() else ()
        taken = {key.id for key in keys}
        key_id = secrets.token_hex(_ID_BYTES)
        while key_id in taken:
            key_id = secrets.token_hex(_ID_BYTES)
        key = Key(
            id=key_id,
            name=name,
            scopes=tuple(scope for scope in SCOPES if scope in scopes),
            created=_now(),
            requests_per_minute=requests_per_minute,
            sha256=_hash(secret.encode()),
        )
        _write(path, (*keys, key))
    return key, f"rw_{key.id}_{secret}"


def revoke_key(path: Path, key_id: str) -> Key:
    """Revoke a key for good; services that read the file refuse it from their next request on.

    Args:
        path: the file.
        key_id: the key's id; a whole key will do.

    Returns:
        The key; one that was revoked before stays as it was.

    Raises:
        InputError: the file holds no such key, is no key file, or cannot be written.
    """
    whole = _KEY.fullmatch(key_id)
    key_id = whole[1] if whole else key_id
    read_keys(path)  # a file that is not there is no reason to make a lock
    with _locked(path) as path:
        keys = {key.id: key for key in read_keys(path)}
        if key_id not in keys:
            raise InputError("ID", key_id, "the id of a key, as `rayward keys list` shows it")
        if keys[key_id].revoked is None:
            keys[key_id] = keys[key_id].model_copy(update={"revoked": _now()})
            _write(path, tuple(keys.values()))
    return keys[key_id]


def is_loopback(host: str) -> bool:
    """Whether an address is one that only its own machine reaches."""
    if host == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback


def require_keys(settings: KeySettings, host: str) -> None:
    """Refuse to serve others without keys.

    Args:
        settings: where the keys are.
        host: the address that Serve's proxy listens on.

    Raises:
        InputError: it can be reached by others, and there are no keys.
    """
    if settings.path is None and not is_loopback(host):
        raise InputError(
            "http.host",
            host,
            "127.0.0.1, or keys (`rayward keys create`, keys.path), because others could come in",
        )


def _hash(secret: bytes) -> str:
    return hashlib.sha256(secret).hexdigest()


def _now() -> datetime:
    return datetime.now(UTC).replace(microsecond=0)


@contextmanager
def _locked(path: Path) -> Iterator[Path]:
    """Alone with the file until the block ends; the file, behind all links that lead to it.

    The lock is a file beside it, because the file itself is replaced.
    """
    try:
        # What is replaced must be the file that services read, not a link to it.
        path = path.resolve()
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = os.open(path.with_name(f".{path.name}.lock"), os.O_CREAT | os.O_RDWR, 0o600)
    except (OSError, RuntimeError) as error:  # RuntimeError: links that go round in a circle
        reason = getattr(error, "strerror", error)
        raise InputError("--file", str(path), f"a place to write to ({reason})") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if path.exists():
            _leave_to_owner_of(path, lock)
        yield path
    finally:
        os.close(lock)


def _write(path: Path, keys: tuple[Key, ...]) -> None:
    """Put keys in place of a file's. It stays with whom it belonged to: the service's own user."""
    before = os.umask(_OWNER_ONLY)
    staged = path.with_name(f".{path.name}.new")
    try:
        text = _KeyFile(keys=keys).model_dump_json(indent=1)
        atomic.write_bytes(str(staged), text.encode() + b"\n")
        if path.exists():
            _leave_to_owner_of(path, staged)
            staged.chmod(stat.S_IMODE(path.stat().st_mode))
        staged.replace(path)
        atomic.sync(path.parent)
    finally:
        staged.unlink(missing_ok=True)
        os.umask(before)


def _leave_to_owner_of(path: Path, made: Path | int) -> None:
    """Give a file that was made to whom another belongs."""
    owner, own = path.stat(), os.stat(made)
    if (own.st_uid, own.st_gid) == (owner.st_uid, owner.st_gid):
        return
    try:
        os.chown(made, owner.st_uid, owner.st_gid)
    except PermissionError as error:
        raise InputError("--file", str(path), "a file of the user who changes it") from error
