"""The file of the keys after a power cut."""

from pathlib import Path

import pytest

from rayward.services.http.keys import create_key, revoke_key
from tests.power import Disk


def test_a_key_that_was_made_or_revoked_is_so_after_a_power_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = Disk(monkeypatch)
    file = tmp_path / "keys.json"
    key, _ = create_key(file, ["score"])
    made = file.stat().st_size
    revoke_key(file, key.id)
    revoked = file.stat().st_size
    for size, (content, *_, named, folder) in (
        (made, disk.events[:5]),
        (revoked, disk.events[5:]),
    ):
        assert (content.kind, content.size) == ("sync", size)
        assert (named.kind, named.path) == ("rename", file)
        assert (folder.kind, folder.path) == ("sync", tmp_path)
