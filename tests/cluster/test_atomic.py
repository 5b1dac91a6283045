"""Files and folders are whole or not there, as a reader sees them and after a power cut."""

from pathlib import Path

import pytest

from rayward.cluster.atomic import new_directory, new_file, read_bytes, resolve, write_bytes
from tests.power import Disk


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


def test_a_file_is_on_the_disk_before_its_name_and_its_name_before_the_return(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = Disk(monkeypatch)
    target = tmp_path / "file.json"
    write_bytes(str(target), b"whole")
    (content,) = disk.before(target)
    assert (content.path.parent, content.size) == (tmp_path, len(b"whole"))
    assert disk.after(target) == [tmp_path]


def test_a_folder_is_on_the_disk_before_its_name_and_its_name_before_the_return(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = Disk(monkeypatch)
    target = tmp_path / "model"
    with new_directory(target) as partial:
        (partial / "deep").mkdir()
        (partial / "deep" / "weights").write_bytes(b"weights")
    synced = {one.path.relative_to(partial).as_posix(): one.size for one in disk.before(target)}
    assert synced == {"deep/weights": len(b"weights"), "deep": None, ".": None}
    assert disk.after(target) == [tmp_path]
