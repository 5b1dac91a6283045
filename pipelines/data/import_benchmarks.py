"""`rayward import truthfulqa` and `toxigen`: a benchmark's table in a data directory.

A benchmark is measured on as a whole: it is not split, and joins a directory without touching the
other tables, in place of what was imported of this benchmark before. The table appears whole or
not at all, so a complete directory stays complete, and one whose import of rows did not end stays
incomplete. A directory may hold benchmarks alone.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from typing import TypeVar

from pydantic import BaseModel, ConfigDict

from rayward.cluster.errors import InputError
from rayward.cluster.records.benchmarks import (
    ToxigenPrompt,
    TruthfulQuestion,
    write_toxigen,
    write_truthfulqa,
)
from rayward.cluster.records.tables import BenchmarkName, DataDirectory
from rayward.pipelines.data.rows import BenchmarkRow, RowSkipped
from rayward.pipelines.data.state import check_folder, holds_split_data
from rayward.pipelines.data.toxigen import read_toxigen_lines, toxigen_files
from rayward.pipelines.data.truthfulqa import read_truthfulqa_csv


class BenchmarkReport(BaseModel):
    """What an import read, kept and skipped: rows_read == rows_kept + sum of `skipped`."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    format: BenchmarkName
    source: str
    """The file or folder that was read."""
    out: str
    """The data directory."""
    rows_read: int
    rows_kept: int
    skipped: dict[str, int]
    """Rows left out, by reason; a row has one reason."""
    noted: dict[str, int]
    """Rows kept with an oddity, by oddity; a row may have several."""
    columns_ignored: dict[str, int]
    """Rows with a column that nothing reads, by column."""
    files_ignored: list[str]
    """Names in the source folder that are not prompt files."""
    groups: dict[str, int]
    """Rows kept, by the category of the question or the file of the prompt."""


_Item = TypeVar("_Item", TruthfulQuestion, ToxigenPrompt)


def import_benchmark(format: BenchmarkName, source: str, out: str) -> BenchmarkReport:
    """Read `source` into the benchmark's table in the data directory `out`.

    Args:
        format: which benchmark: `truthfulqa` is its CSV file, `toxigen` a folder of prompt files,
            or one of them.
        source: a local path or any pyarrow.fs URI.
        out: the data directory, local or any pyarrow.fs URI.

    Raises:
        InputError: the source is not as it should be, no row can be kept, or `out` cannot be
            written to.
    """
    directory = DataDirectory(out)
    check_folder(directory)
    if format == "truthfulqa":
        return _import(format, source, directory, read_truthfulqa_csv(source), write_truthfulqa)
    files, ignored = toxigen_files(source)
    lines = chain.from_iterable(read_toxigen_lines(file) for file in files)
    return _import(format, source, directory, lines, write_toxigen, ignored)


def _import(
    format: BenchmarkName,
    source: str,
    directory: DataDirectory,
    rows: Iterable[BenchmarkRow[_Item] | RowSkipped],
    write: Callable[[str, Sequence[_Item]], None],
    files_ignored: Sequence[str] = (),
) -> BenchmarkReport:
    items: dict[str, _Item] = {}
    skipped: Counter[str] = Counter()
    noted: Counter[str] = Counter()
    columns_ignored: Counter[str] = Counter()
    groups: Counter[str] = Counter()
    for row in rows:
        if isinstance(row, RowSkipped):
            skipped[row.reason] += 1
        elif row.item.id in items:
            skipped["duplicate"] += 1
        else:
            items[row.item.id] = row.item
            noted.update(row.noted)
            columns_ignored.update(row.columns_ignored)
            groups[row.group] += 1
    if not items:
        raise InputError("source", source, f"at least one usable row; skipped: {dict(skipped)}")
    alone = not holds_split_data(directory)
    try:
        write(directory.benchmark(format), list(items.values()))
    except OSError as error:
        raise InputError(
            "--out", directory.uri, f"a folder that can be written to ({error})"
        ) from error
    if alone:
        directory.mark_complete()
    return BenchmarkReport(
        format=format,
        source=source,
        out=directory.uri,
        rows_read=len(items) + skipped.total(),
        rows_kept=len(items),
        skipped=dict(sorted(skipped.items())),
        noted=dict(sorted(noted.items())),
        columns_ignored=dict(sorted(columns_ignored.items())),
        files_ignored=list(files_ignored),
        groups=dict(sorted(groups.items())),
    )
