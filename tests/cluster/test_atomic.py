"""Files of a store that is no object store are whole or not there, as a reader sees them."""

from pathlib import Path

import pytest

from rayward.cluster.atomic import new_file, read_bytes, resolve, write_bytes


def test_a_reader_sees_the_old_file_until_the_new_one_is_whole(tmp_path: Path) -> None:
    uri = f"fsspec+file://{tmp_path}/folder/file.json"
    write_bytes(uri, b"old")
    with new_file(*resolve(uri)) as stream:
        stream.write(b"half of ")
        stream.flush()
        assert read_bytes(uri) == b"old"
        stream.write(b"the new")
    assert read_bytes(uri) == b"half of the new"
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["file.json"]


def test_what_fails_on_the_way_leaves_the_old_file_and_nothing_beside_it(tmp_path: Path) -> None:
    uri = f"fsspec+file://{tmp_path}/file.json"
    write_bytes(uri, b"old")
    with pytest.raises(TypeError), new_file(*resolve(uri)) as stream:
        stream.write(["no bytes"])
    assert read_bytes(uri) == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["file.json"]
