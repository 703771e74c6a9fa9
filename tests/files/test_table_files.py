"""The reader of tables: every row is read as it was written, or the file is refused with the line's number."""

from __future__ import annotations

import csv
import io
import json
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lvmae.errors import InputError
from lvmae.files.table_files import cell_text, column_of, read_table
from lvmae.files.tables import write_parquet_rows


def _file(folder: Path, text: str | bytes, name: str = "t.csv") -> Path:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


_TEXT = st.text(st.characters(exclude_characters="\0\r", exclude_categories=("Cs",)), max_size=12)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(_TEXT, _TEXT, _TEXT).filter(lambda row: any(map(str.strip, row))), max_size=8))
def test_what_the_csv_module_writes_is_read_back_or_refused(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str, str]]
) -> None:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_ALL).writerows([("a", "b", "c"), *rows])
    path = _file(tmp_path_factory.mktemp("t"), text.getvalue())
    if any("\n" in cell and "," in cell for row in rows for cell in row):  # its lines may look like rows
        with suppress(InputError):
            read_table(path)
        return
    assert [tuple(row.values.values()) for row in read_table(path).rows] == rows


def test_every_kind_of_file_gives_the_same_rows(tmp_path: Path) -> None:
    rows = [{"id": "a", "n": "1"}, {"id": "b", "n": None}]
    _file(tmp_path, "\ufeffid,n\r\na,1\r\n\r\n,\r\nb\r\n")
    _file(tmp_path, "id\tn\t\na\t1\t\nb\t\t\n".replace("b\t\t", "b"), "t.tsv")
    _file(tmp_path, "".join(json.dumps(row) + "\n" for row in rows), "t.jsonl")
    _file(tmp_path, "id\tn\na\t1\nb\n".encode("utf-16"), "u.tsv")
    write_parquet_rows(tmp_path / "t.parquet", rows, {"id": str, "n": str})
    for name in ("t.csv", "t.tsv", "t.jsonl", "u.tsv", "t.parquet"):
        table = read_table(tmp_path / name)
        assert (table.columns, [row.values for row in table.rows]) == (("id", "n"), rows), name
    assert [row.where for row in read_table(tmp_path / "t.csv").rows] == ["line 2", "line 5"]


def test_separators_inside_a_field_are_no_ends_of_lines(tmp_path: Path) -> None:
    for mark in ("\x0b", "\x0c", "\x1c", "\x85", "\u2028", "\u2029"):
        _file(tmp_path, f"id,text\na,one{mark}two\nb,three\n")
        _file(tmp_path, json.dumps({"id": "a", "text": f"one{mark}two"}, ensure_ascii=False) + "\n", "t.jsonl")
        assert [row.values["text"] for row in read_table(tmp_path / "t.csv").rows] == [f"one{mark}two", "three"]
        assert [row.values["text"] for row in read_table(tmp_path / "t.jsonl").rows] == [f"one{mark}two"]


def test_a_field_of_any_length_and_the_process_keeps_its_limit(tmp_path: Path) -> None:
    before = csv.field_size_limit()
    (row,) = read_table(_file(tmp_path, "id,text\na," + "x" * 300_000)).rows
    assert len(row.values["text"]) == 300_000
    assert csv.field_size_limit() == before


def test_quoted_lines_that_are_no_rows_are_one_field(tmp_path: Path) -> None:
    (row, other) = read_table(_file(tmp_path, 'id,text,n\na,"one\ntwo ""three""",1\nb,x,2\n')).rows
    assert (row.values["text"], row.where, other.where) == ('one\ntwo "three"', "line 2", "line 4")


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("t.csv", 'id,title,label\nv0,a,x\nv1,"b,x\nv2,c,y\n', "line 3: a quote in it is not closed up to line 4"),
        ("t.csv", 'id,title,label\nv1,"b,x\nv2,c,y\nv3,"d,x\n', "line 2: a quote in it is not closed up to line 4"),
        ("t.csv", 'id,title,label\nv1,"b,x\nv2,c,y\nv3,d",x\n', "line 2: a quote in it is closed on line 4 only"),
        ("t.tsv", 'id\ttitle\nv1\t"b\nv2\tc"\n', "line 2: a quote in it is closed on line 3 only"),
        ("t.csv", "id,label\nv1,a\n\nv2,b,c\n", "line 4: it has 3 fields and the header names 2"),
        ("t.csv", "id,label,Label\nv1,a,b\n", "line 1: it names the column 'Label' twice"),
        ("t.csv", "id;label\nv1;a\n", "line 1: its columns are separated by semicolons and not by commas"),
        ("t.csv", b"id,label\nv1,a\nv2,\xe9\n", "line 3: it is not UTF-8 text"),
        ("t.csv", "id,label\nv1,a\0\n", "line 2: it holds a NUL"),
        ("t.jsonl", '{"id": "a"}\n{"id": "b", "id": "c"}\n', "line 2: it names 'id' twice"),
        ("t.jsonl", '{"id": "a"}\n{"id": \n', "line 2: this is no JSON"),
        ("t.jsonl", '"a"\n', "line 1: each line must be an object"),
    ],
)
def test_what_would_lose_a_row_is_refused(tmp_path: Path, name: str, text: str | bytes, says: str) -> None:
    with pytest.raises(InputError) as caught:
        read_table(_file(tmp_path, text, name))
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_cells_and_columns() -> None:
    assert [cell_text(v) for v in (None, float("nan"), 3.0, 0.5, 7, True, " x ", b"y")] == [
        "", "", "3", "0.5", "7", "True", "x", "y",
    ]  # fmt: skip
    assert column_of([" ID", "Label"], ("video", "id")) == " ID"
    assert column_of(["x"], ("video", "id")) is None
