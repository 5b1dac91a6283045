"""`rayward import`: a public data set becomes a data directory, or joins one.

What is in a split is decided prompt by prompt, by a digest of its text and the seed, so that a
prompt falls into the same split whichever file it is in. A share of the prompts is held out,
another is for validation (the early stop of PPO); the rest are for training. Demonstrations and
pairs follow their prompt; there is no validation split of them, and those of validation prompts
are held out. So whatever a train file holds, its prompt is in no other split.

One conversation is one prompt in the whole directory. Where sources differ about it, it is
adversarial if any says so (then not borderline), and the last to name a category or vector is
right; the rows of every table get the same. A pair or demonstration that is imported again takes
the place of its equal, so repeating an import changes nothing. One import at a time may write to
a directory.
"""

from collections import Counter
from collections.abc import Iterator
from typing import Annotated, Literal, get_args

import typer
from pydantic import BaseModel, ConfigDict, ValidationError
from rich.console import Console
from rich.progress import Progress

from cluster.atomic import is_file, join, read_bytes, resolve, write_bytes
from cluster.errors import InputError
from cluster.tables import DataDirectory
from cluster.types import AXES, Axis
from pipelines.hh_rlhf import hh_rlhf_row
from pipelines.import_files import read_json_lines, read_parquet
from pipelines.import_generic import generic_row
from pipelines.import_merge import (
    SPLITS,
    Collected,
    Sizes,
    SplitRule,
    read_collected,
    write_collected,
)
from pipelines.import_rows import ImportedRow, RowSkipped

ImportFormat = Literal["hh-rlhf", "jsonl", "parquet"]
FORMATS: tuple[ImportFormat, ...] = get_args(ImportFormat)

STATE_FILE = "import.json"


class ImportReport(BaseModel):
    """What an import read, kept and skipped: rows_read == rows_kept + sum of `skipped`."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    format: ImportFormat
    source: str
    """The file that was read."""
    axis: Axis | None
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
    prompts: dict[str, int]
    """Different prompts of this source, by split."""
    demonstrations: dict[str, int]
    """Demonstrations of this source, by split."""
    pairs: dict[str, int]
    """Preference pairs of this source, by split."""
    without_safety_labels: int
    """Pairs of this source that lack a safety label: they get no auxiliary loss."""
    directory: Sizes
    """What the data directory holds now, all sources together."""


class _State(SplitRule):
    """How a directory is split, and the import that is writing to it."""

    unfinished: str | None


def import_data(
    format: ImportFormat,
    source: str,
    out: str,
    *,
    axis: Axis | None = None,
    seed: int = 0,
    held_out_share: float = 0.1,
    validation_share: float = 0.05,
) -> ImportReport:
    """Read `source` into the data directory `out`, beside what is there.

    Args:
        format: how to read the rows: `hh-rlhf` and `jsonl` are JSON lines (.gz and .xz too).
        source: a local path or any pyarrow.fs URI.
        out: the data directory, local or any pyarrow.fs URI.
        axis: what the pairs were judged on; hh-rlhf needs it, in the other formats a row's own
            `axis` does as well, and pairs of another axis are skipped.
        seed: decides, with a prompt's text, its split. The same for all imports into `out`.
        held_out_share: share of the prompts that is held out, in [0, 1).
        validation_share: share of the prompts that is for validation, in [0, 1).

    Raises:
        InputError: an argument or the source is not as it should be, no row can be kept, or
            `out` holds data that these rows cannot join.
    """
    rule = _checked_rule(seed, held_out_share, validation_share)
    if format not in FORMATS:
        raise InputError("format", format, f"one of {', '.join(FORMATS)}")
    if axis is not None and axis not in AXES:
        raise InputError("--axis", axis, f"one of {', '.join(AXES)}")
    if format == "hh-rlhf" and axis is None:
        raise InputError("--axis", axis, "safety or helpfulness, which hh-rlhf's rows do not say")
    directory = DataDirectory(out)
    _, source_path = resolve(source)
    writing = f"{format} {axis} {source_path}"
    _check_joins(directory, rule, writing)

    new = Collected()
    skipped: Counter[str] = Counter()
    noted: Counter[str] = Counter()
    columns_ignored: Counter[str] = Counter()
    rows_kept = 0
    # The folder's name tells harmless-base/train.jsonl.gz from helpful-base/train.jsonl.gz.
    name = "/".join(source_path.split("/")[-2:])
    for row in _rows(format, source, axis, name):
        try:
            if isinstance(row, RowSkipped):
                raise row
            noted.update(new.add(row))
        except RowSkipped as reason:
            skipped[reason.reason] += 1
        else:
            rows_kept += 1
            columns_ignored.update(row.columns_ignored)
    if not rows_kept:
        raise InputError("source", source, f"at least one usable row; skipped: {dict(skipped)}")

    whole = read_collected(directory)
    whole.join(new)
    splits = whole.splits(rule)
    _begin(directory, rule, writing)
    write_collected(directory, whole, splits)
    _end(directory, rule)
    return ImportReport(
        format=format,
        source=source,
        axis=axis,
        out=out,
        rows_read=rows_kept + skipped.total(),
        rows_kept=rows_kept,
        skipped=dict(sorted(skipped.items())),
        noted=dict(sorted(noted.items())),
        columns_ignored=dict(sorted(columns_ignored.items())),
        without_safety_labels=sum(
            pair.chosen_safe is None or pair.rejected_safe is None for pair in new.pairs.values()
        ),
        **new.sizes(splits).model_dump(),
        directory=whole.sizes(splits),
    )


def import_command(
    format: Annotated[ImportFormat, typer.Argument(help="How to read the rows.")],
    source: Annotated[str, typer.Argument(help="A file, local or at any pyarrow.fs URI.")],
    out: Annotated[str, typer.Option(help="The data directory to write to or to join.")],
    axis: Annotated[Axis | None, typer.Option(help="What the pairs were judged on.")] = None,
    held_out_share: Annotated[float, typer.Option(help="Share of the prompts held out.")] = 0.1,
    validation_share: Annotated[
        float, typer.Option(help="Share of the prompts for PPO's early stop.")
    ] = 0.05,
    seed: Annotated[int, typer.Option(help="Decides, with its text, a prompt's split.")] = 0,
) -> None:
    """Import preference pairs, demonstrations or prompts into a data directory."""
    report = import_data(
        format,
        source,
        out,
        axis=axis,
        seed=seed,
        held_out_share=held_out_share,
        validation_share=validation_share,
    )
    typer.echo(report.model_dump_json(indent=2))


app = typer.Typer()
app.command("import")(import_command)


def _checked_rule(seed: int, held_out_share: float, validation_share: float) -> SplitRule:
    shares = {"--held-out-share": held_out_share, "--validation-share": validation_share}
    for option, share in shares.items():
        if not 0 <= share < 1:
            raise InputError(option, share, "a share of at least 0 and below 1")
    if held_out_share + validation_share >= 1:
        raise InputError(
            "--held-out-share and --validation-share",
            held_out_share + validation_share,
            "a sum below 1, so that prompts are left for training",
        )
    return SplitRule(
        seed=seed, held_out_share=float(held_out_share), validation_share=float(validation_share)
    )


def _rows(
    format: ImportFormat, source: str, axis: Axis | None, name: str
) -> Iterator[ImportedRow | RowSkipped]:
    """Every row of the source, parsed; progress goes to a terminal's standard error."""
    records = read_parquet(source) if format == "parquet" else read_json_lines(source)
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        for record in progress.track(records, description=f"reading {name}"):
            if isinstance(record, RowSkipped):
                yield record
                continue
            try:
                if format == "hh-rlhf" and axis is not None:
                    yield hh_rlhf_row(record, axis, name)
                else:
                    yield generic_row(record, axis, name)
            except RowSkipped as reason:
                yield reason


def _check_joins(directory: DataDirectory, rule: SplitRule, writing: str) -> None:
    """Refuse a directory that the new rows cannot join without breaking its split."""
    state_path = join(directory.uri, STATE_FILE)
    if is_file(directory.uri):
        raise InputError("--out", directory.uri, "a folder; this is a file")
    if not is_file(state_path):
        if directory.is_complete() or any(is_file(directory.prompts(part)) for part in SPLITS):
            raise InputError(
                "--out",
                directory.uri,
                f"a new folder or one that `rayward import` wrote; without {STATE_FILE} it is "
                "not known how this one was split",
            )
        return
    try:
        state = _State.model_validate_json(read_bytes(state_path))
    except ValidationError as error:
        raise InputError("file", state_path, f"as `rayward import` wrote it ({error})") from error
    for name, value in rule.model_dump().items():
        if value != getattr(state, name):
            raise InputError(
                "--" + name.replace("_", "-"),
                value,
                f"{getattr(state, name)}, as for the other imports into {directory.uri}",
            )
    if state.unfinished not in (None, writing):
        raise InputError(
            "--out",
            directory.uri,
            f"a directory to which no other import is writing; this one did not end: "
            f"{state.unfinished} (repeat it first, or start with a new folder)",
        )


def _begin(directory: DataDirectory, rule: SplitRule, writing: str) -> None:
    state = _State(**rule.model_dump(), unfinished=writing)
    try:
        write_bytes(join(directory.uri, STATE_FILE), state.model_dump_json().encode())
    except OSError as error:
        raise InputError(
            "--out", directory.uri, f"a folder that can be written to ({error})"
        ) from error
    directory.mark_incomplete()


def _end(directory: DataDirectory, rule: SplitRule) -> None:
    state = _State(**rule.model_dump(), unfinished=None)
    write_bytes(join(directory.uri, STATE_FILE), state.model_dump_json().encode())
    directory.mark_complete()
