"""Reading files that grow: whatever the parts, together they are the file."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import fs

from rayward.cluster.errors import InputError
from rayward.services.jobs import files as job_files
from rayward.services.jobs.files import decode_part, metric_row, read_lines, read_part
from rayward.services.jobs.runs import RunsRoot

LOCAL = fs.LocalFileSystem()


@given(data=st.binary(max_size=60) | st.text(max_size=30).map(str.encode), limit=st.integers(4, 9))
def test_parts_of_a_text_are_the_text(data: bytes, limit: int) -> None:
    offset, said = 0, ""
    while True:
        part = data[offset : offset + limit]
        is_end = offset + len(part) == len(data)
        text, used = decode_part(part, is_end)
        assert used > 0 or is_end
        said, offset = said + text, offset + used
        if is_end:
            break
    assert offset == len(data)
    assert said == data.decode(errors="replace")


def test_half_a_character_waits_for_the_other_half() -> None:
    data = "aé".encode()
    assert decode_part(data[:2], is_end=False) == ("a", 1)
    assert decode_part(data[:2], is_end=True) == ("a\ufffd", 2)
    assert decode_part(data, is_end=False) == ("aé", 3)


def test_a_part_ends_with_its_file(tmp_path: Path) -> None:
    path = tmp_path / "log.txt"
    assert read_part(LOCAL, str(path), 0, 10) == b""
    path.write_bytes(b"0123456789")
    assert read_part(LOCAL, str(path), 8, 10) == b"89"
    assert read_part(LOCAL, str(path), 10, 10) == b""
    assert read_part(LOCAL, str(path), 2**53, 10) == b""


@given(
    lines=st.lists(st.binary(max_size=12).filter(lambda line: b"\n" not in line), max_size=8),
    torn=st.binary(max_size=5).filter(lambda line: b"\n" not in line),
    offset=st.integers(0, 100),
    chunk=st.integers(1, 7),
)
def test_lines_from_any_offset(
    tmp_path_factory: pytest.TempPathFactory,
    lines: list[bytes],
    torn: bytes,
    offset: int,
    chunk: int,
) -> None:
    path = tmp_path_factory.getbasetemp() / "lines"
    data = b"".join(line + b"\n" for line in lines) + torn
    path.write_bytes(data)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(job_files, "_CHUNK", chunk)
        found = list(read_lines(LOCAL, str(path), offset))
    starts = [sum(len(line) + 1 for line in lines[:n]) for n in range(len(lines))]
    expected = [line for line, start in zip(lines, starts, strict=True) if start >= offset]
    assert [line.data for line in found] == [line + b"\n" for line in expected]
    assert all(data[: line.end].endswith(line.data) for line in found)


def test_a_line_that_is_no_row_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(
        '{"stage": "ppo", "step": 1, "time": 0.5, "kl": 2.0}\n{"stage": "ppo"}\n[\n'
        '{"stage": 1, "step": 1, "time": 0.5}\n'
        '{"stage": "ppo", "step": 1, "time": 0.5, "kl": "x"}\n'
        # What would end an answer, or a stream, half-way.
        '{"stage": "ppo", "step": 1, "time": 0.5, "kl": NaN}\n'
        '{"stage": "ppo", "step": 1, "time": -Infinity}\n'
        '{"stage": "\\ud800", "step": 1, "time": 0.5}\n'
        '{"stage": "ppo", "step": 1, "time": 0.5, "\\ud800": 1}\n'
        f'{{"stage": "ppo", "step": 1, "time": 0.5, "kl": 1{"0" * 400}}}\n'
        f"{'[' * 100_000}\n"
    )
    row, *wrong = read_lines(LOCAL, str(path), 0)
    assert metric_row(row)["kl"] == 2.0
    assert len(wrong) == 10
    for line in wrong:
        with pytest.raises(ValueError, match=r"."):
            metric_row(line)


def test_a_runs_root_that_is_no_place_is_named() -> None:
    for uri in ("nowhere://runs", ""):
        with pytest.raises(InputError) as caught:
            RunsRoot(uri)
        assert (caught.value.field, caught.value.value) == ("jobs.runs_root", uri)
