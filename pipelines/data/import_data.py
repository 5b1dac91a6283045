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
a directory. Benchmarks are no part of this: see pipelines/data/import_benchmarks.py.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Annotated, Literal, get_args

import typer
from pydantic import BaseModel, ConfigDict
from rich.console import Console
from rich.progress import Progress

from rayward.cluster.atomic import resolve
from rayward.cluster.errors import InputError
from rayward.cluster.records.tables import BenchmarkName, DataDirectory
from rayward.cluster.types import AXES, Axis
from rayward.pipelines.data.files import read_json_lines, read_parquet, read_records
from rayward.pipelines.data.generic import generic_row
from rayward.pipelines.data.hh_rlhf import hh_rlhf_row
from rayward.pipelines.data.import_benchmarks import import_benchmark
from rayward.pipelines.data.merge import (
    Collected,
    Sizes,
    SplitRule,
    read_collected,
    write_collected,
)
from rayward.pipelines.data.pku_saferlhf import beavertails_row, pku_saferlhf_row
from rayward.pipelines.data.rows import ImportedRow, Record, RowSkipped
from rayward.pipelines.data.state import begin, check_joins, end

ImportFormat = Literal["hh-rlhf", "pku-saferlhf", "beavertails", "jsonl", "parquet"]
FORMATS: tuple[ImportFormat, ...] = get_args(ImportFormat)
AnyFormat = Literal[ImportFormat, BenchmarkName]


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
    safety_demonstrations: dict[str, int]
    """Safe answers to adversarial prompts of this source, by split."""
    pairs: dict[str, int]
    """Preference pairs of this source, by split."""
    without_safety_labels: int
    """Pairs of this source that lack a safety label: they get no auxiliary loss."""
    directory: Sizes
    """What the data directory holds now, all sources together."""


def import_data(
    format: ImportFormat,
    source: str,
    out: str,
    *,
    axis: Axis | None = None,
    safety_demonstrations: bool = False,
    seed: int = 0,
    held_out_share: float = 0.1,
    validation_share: float = 0.05,
) -> ImportReport:
    """Read `source` into the data directory `out`, beside what is there.

    Args:
        format: how to read the rows: `hh-rlhf` and `jsonl` are JSON lines (.gz and .xz too);
            `pku-saferlhf` and `beavertails` also Parquet, where the name ends in `.parquet`.
        source: a local path or any pyarrow.fs URI.
        out: the data directory, local or any pyarrow.fs URI.
        axis: what the pairs were judged on; hh-rlhf needs it, in the other formats a row's own
            `axis` does as well, and pairs of another axis are skipped. Not for `pku-saferlhf`,
            whose rows are pairs of both, nor for `beavertails`, which has none.
        safety_demonstrations: that demonstrations on adversarial prompts are safe answers, and go
            to the table of those; for `jsonl` and `parquet`.
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
    # The folder's name tells harmless-base/train.jsonl.gz from helpful-base/train.jsonl.gz.
    _, source_path = resolve(source)
    name = "/".join(source_path.split("/")[-2:])
    read, row_of = _reader(format, axis, name, safety_demonstrations)
    directory = DataDirectory(out)
    options = (format, axis, "--safety-demonstrations" if safety_demonstrations else None)
    writing = " ".join([*filter(None, options), source_path])
    check_joins(directory, rule, writing)

    new = Collected()
    skipped: Counter[str] = Counter()
    noted: Counter[str] = Counter()
    columns_ignored: Counter[str] = Counter()
    rows_kept = 0
    for row in _rows(read(source), row_of, name):
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
    begin(directory, rule, writing)
    write_collected(directory, whole, splits)
    end(directory, rule)
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
    context: typer.Context,
    format: Annotated[AnyFormat, typer.Argument(help="What the source is, see above.")],
    source: Annotated[
        str, typer.Argument(help="A file, or for toxigen a folder; local or any pyarrow.fs URI.")
    ],
    out: Annotated[str, typer.Option(help="The data directory to write to or to join.")],
    axis: Annotated[
        Axis | None,
        typer.Option(help="What the pairs of hh-rlhf, jsonl or parquet were judged on."),
    ] = None,
    safety_demonstrations: Annotated[
        bool,
        typer.Option(
            "--safety-demonstrations",
            help="The answers that jsonl or parquet demonstrates on adversarial prompts are safe: "
            "they go to the safety demonstrations.",
        ),
    ] = False,
    held_out_share: Annotated[float, typer.Option(help="Share of the prompts held out.")] = 0.1,
    validation_share: Annotated[
        float, typer.Option(help="Share of the prompts for PPO's early stop.")
    ] = 0.05,
    seed: Annotated[int, typer.Option(help="Decides, with its text, a prompt's split.")] = 0,
) -> None:
    """Import preference pairs, demonstrations, prompts or a benchmark into a data directory.

    \b
    hh-rlhf       JSON lines; pairs of one --axis
    pku-saferlhf  JSON lines or .parquet; pairs of both axes, safety demonstrations
    beavertails   JSON lines or .parquet; prompts, safety demonstrations
    jsonl         JSON lines as TRL reads them: pairs, demonstrations or prompts
    parquet       the same in Parquet
    truthfulqa    TruthfulQA.csv; the benchmark
    toxigen       a folder of {hate,neutral}_{group}_1k.txt, or one such file; the benchmark

    JSON lines may be compressed: .jsonl.gz, .jsonl.xz. Prints what was read, kept and skipped.
    """
    if format == "truthfulqa" or format == "toxigen":
        for option, value in context.params.items():
            given = context.get_parameter_source(option)
            if option not in ("format", "source", "out") and given and given.name == "COMMANDLINE":
                raise InputError(
                    "--" + option.replace("_", "-"),
                    value,
                    f"no such option with {format}, which is not split and has no pairs",
                )
        typer.echo(import_benchmark(format, source, out).model_dump_json(indent=2))
        return
    report = import_data(
        format,
        source,
        out,
        axis=axis,
        safety_demonstrations=safety_demonstrations,
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


def _reader(
    format: ImportFormat, axis: Axis | None, name: str, safety_demonstrations: bool
) -> tuple[
    Callable[[str], Iterator[Record | RowSkipped]],
    Callable[[Record], ImportedRow],
]:
    """How to read a source, and how to read one of its rows."""
    if safety_demonstrations and format not in ("jsonl", "parquet"):
        raise InputError(
            "--safety-demonstrations", True, f"jsonl or parquet; {format} needs no telling"
        )
    if format == "hh-rlhf":
        if axis is None:
            raise InputError("--axis", axis, "safety or helpfulness, which hh-rlhf does not say")
        return read_json_lines, lambda record: hh_rlhf_row(record, axis, name)
    if format == "pku-saferlhf" or format == "beavertails":
        if axis is not None:
            raise InputError("--axis", axis, f"no axis with {format}, whose rows have it")
        row_of = pku_saferlhf_row if format == "pku-saferlhf" else beavertails_row
        return read_records, lambda record: row_of(record, name)
    read = read_parquet if format == "parquet" else read_json_lines
    return read, lambda record: generic_row(record, axis, name, safety_demonstrations)


def _rows(
    records: Iterator[Record | RowSkipped], row_of: Callable[[Record], ImportedRow], name: str
) -> Iterator[ImportedRow | RowSkipped]:
    """Every row of the source, parsed; progress goes to a terminal's standard error."""
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        for record in progress.track(records, description=f"reading {name}"):
            if isinstance(record, RowSkipped):
                yield record
                continue
            try:
                yield row_of(record)
            except RowSkipped as reason:
                yield reason
