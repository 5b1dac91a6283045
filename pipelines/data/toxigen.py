"""ToxiGen's prompts (Hartvigsen et al. 2022, arXiv 2203.09509): `{hate,neutral}_{group}_1k.txt`.

Each line of a file is one prompt: a list of statements about the group, shuffled anew for every
line, which the model goes on with. The benchmark's own code (src/make_prompts.py) makes it as
"- first<line break>- second<line break>-" and writes it as Python's repr, so that a line break is
the two characters backslash and n. Here it is a line break again: that is what the list was before
it was stored. (generate.py there gives the line as it is stored to GPT-3.)

A few statements were stored without their line break. At the end of a prompt, where "...text.-"
stands for "...text.<line break>-" or the dash is missing too, it is mended and noted: the model
would otherwise end the last statement. In the middle, the text stays as it is. Other backslashes
stay as they are, and are noted.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from pyarrow import fs

from rayward.cluster.atomic import file_info, join, resolve
from rayward.cluster.errors import InputError
from rayward.cluster.records.benchmarks import ToxigenPrompt
from rayward.pipelines.data.files import open_source
from rayward.pipelines.data.rows import BenchmarkRow, RowSkipped, digest_id

_NAME = re.compile(r"(hate|neutral)_(.+)_1k\.txt")
_PATTERN = "{hate,neutral}_{group}_1k.txt"
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class ToxigenFile:
    """A file of prompts: where it is, whom its statements are about, and whether they hate."""

    uri: str
    group: str
    hateful: bool


def toxigen_files(uri: str) -> tuple[list[ToxigenFile], list[str]]:
    """The prompt files at `uri`, a folder or one file, by name; and the names of a folder's rest.

    Raises:
        InputError: there is nothing at `uri`, or no file named as ToxiGen's are.
    """
    found = file_info(uri)
    if found.type == fs.FileType.Directory:
        filesystem, path = resolve(uri)
        names = sorted(entry.base_name for entry in filesystem.get_file_info(fs.FileSelector(path)))
        places = {name: join(uri, name) for name in names}
    elif found.type == fs.FileType.File:
        places = {found.base_name: uri}
    else:
        raise InputError("source", uri, f"a folder with, or a file named, {_PATTERN}")
    files = []
    for name, place in places.items():
        if match := _NAME.fullmatch(name):
            files.append(ToxigenFile(place, group=match[2], hateful=match[1] == "hate"))
    if not files:
        raise InputError("source", uri, f"a folder with, or a file named, {_PATTERN}")
    return files, [name for name in places if not _NAME.fullmatch(name)]


def read_toxigen_lines(file: ToxigenFile) -> Iterator[BenchmarkRow[ToxigenPrompt] | RowSkipped]:
    """Each line's prompt, or why the line has none; counted under `{hate,neutral}_{group}`.

    Raises:
        InputError: the file is missing, empty, or not text.
    """
    with open_source(file.uri, "lines of text") as lines:
        for number, line in enumerate(lines):
            try:
                yield _prompt(line if number else line.removeprefix(_BOM), file)
            except RowSkipped as reason:
                yield reason


def _prompt(line: bytes, file: ToxigenFile) -> BenchmarkRow[ToxigenPrompt]:
    try:
        stored = line.decode("utf-8").strip()
    except UnicodeDecodeError:
        raise RowSkipped("text_not_utf8") from None
    if not stored:
        raise RowSkipped("blank_line")
    if not stored.startswith("- "):
        raise RowSkipped("not_a_list_of_statements")
    noted = []
    text = stored.replace("\\n", "\n")
    if not text.endswith("\n-"):
        text = text.removesuffix("-").rstrip() + "\n-"
        noted.append("end_mended")
    if "\\" in text:
        noted.append("backslash_kept")
    kind = "hate" if file.hateful else "neutral"
    return BenchmarkRow(
        item=ToxigenPrompt(
            id=digest_id([kind, file.group, text]),
            group=file.group,
            hateful=file.hateful,
            text=text,
        ),
        group=f"{kind}_{file.group}",
        noted=tuple(noted),
    )
