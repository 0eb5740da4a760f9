"""Tables of a user's own: delimiters, encodings, odd rows, Parquet."""

import sys

import pytest

from gatesearch.datasets.folder.tables import (
    ColumnReference,
    column_reference,
    image_names,
    read_table,
    rows_by_id,
)
from gatesearch.errors import DataError, UsageError


def read(tmp_path, text, name="t.csv"):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_table(path)


PLAIN = {"id": ("a", "b"), "age": ("3", "4"), "kind of": ("x y", "")}


@pytest.mark.parametrize(
    "text",
    [
        "id,age,kind of\na,3,x y\nb,4,\n",
        "id;age;kind of\na;3;x y\nb;4;\n",
        "id\tage\tkind of\na\t3\tx y\nb\t4\t\n",
        "id|age|kind of\na|3|x y\nb|4|",
        "\ufeffid,age,kind of\r\na,3,x y\r\nb,4,\r\n",
        "id,age,kind of\ra,3,x y\rb,4,\r",
        '"id","age","kind of"\n"a","3","x y"\n\n"b","4",""\n\n',
        " id , age , kind of \n a , 3 , x y \n b , 4 ,  \n",
    ],
)
def test_delimiters_marks_line_ends_and_quotes(tmp_path, text):
    assert read(tmp_path, text).columns == PLAIN


def test_a_quoted_cell_may_hold_the_delimiter_a_quote_and_a_line_break(tmp_path):
    table = read(tmp_path, 'id,note\na,"x, ""y""\nz"\nb,2\n')
    assert table.columns["note"] == ('x, "y"\nz', "2")
    assert table.lines == (2, 4)


def test_decimal_commas_are_numbers_with_the_delimiter_semicolon_alone(tmp_path):
    assert read(tmp_path, "id;v\na;3,5\nb;-1,25e3\nc;2\n").columns["v"] == ("3.5", "-1.25e3", "2")
    assert read(tmp_path, 'id,v\na,"3,5"\n').columns["v"] == ("3,5",)
    with pytest.raises(DataError, match=r"line 3: column 'v' .* one kind of decimal sign"):
        read(tmp_path, "id;v\na;3,5\nb;2.5\n")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("id,a\nx,1\ny\n", "line 3, must have 2 cells as its first line has, found 1"),
        ("id,a\nx,1,2\n", "line 2, must have 2 cells as its first line has, found 3"),
        ('id,a\nx,"1\n2"\n\ny\n', "line 5, must have 2 cells"),
        ("id,a,a\nx,1,2\n", "each column once, found 'a' twice"),
        ("id,a\n", "rows below it, found none"),
        ("", "rows below it, found none"),
        ('id,a\nx,"1\n', "is no row of a table"),
        ("id,a\nx,1\n".encode("utf-16"), "found UTF-16; save it as CSV UTF-8"),
        ("id,a\nx,é\n".encode("latin-1"), "found the byte 0xe9 in line 2; save it as CSV UTF-8"),
        (b"id,a\nx,\0\n", "found a zero byte"),
        ("id,a\nx," + "1" * 200_000, "is no row of a table"),
    ],
)
def test_bad_tables_are_refused_by_line(tmp_path, text, said):
    with pytest.raises(DataError) as error:
        read(tmp_path, text)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_an_unknown_column_names_the_nearest(tmp_path):
    with pytest.raises(DataError, match="no column 'agee'; did you mean 'age'"):
        read(tmp_path, "id,age\na,1\n").column("agee")


@pytest.mark.parametrize(
    ("text", "file", "columns"),
    [
        ("t.csv:age", "t.csv", ("age",)),
        ("a/t.CSV:x, y", "a/t.CSV", ("x", "y")),
        ('t.tsv:"a,b",c:d', "t.tsv", ("a,b", "c:d")),
        ("t.parquet:*", "t.parquet", ("*",)),
    ],
)
def test_references_to_columns(text, file, columns):
    assert column_reference(text) == ColumnReference(file, columns)


@pytest.mark.parametrize("text", ["masks/{id}.png", "t.csv", "t.csv:", "C:masks/{id}.png"])
def test_what_is_no_reference(text):
    assert column_reference(text) is None


def test_all_columns_are_those_that_are_no_ids(tmp_path):
    table = read(tmp_path, "image,split,a,b\nx.jpg,train,1,2\n")
    assert table.value_columns(("*",)) == ("a", "b")
    assert read(tmp_path, "file,a\nx.jpg,1\n").value_columns(("*",)) == ("a",)


def test_rows_name_images_by_id_file_name_or_path(tmp_path):
    images = {name: tmp_path / "photos" / f"{name}.jpg" for name in ("a", "b", "c/d", "é", "f")}
    names = image_names(images, tmp_path)
    table = read(tmp_path, "n,v\na,1\nb.jpg,2\nphotos/c/d.jpg,3\n"
                 "e\u0301.jpg,4\n./photos/f.jpg,5\nz,6\na.jpg,7\n")  # fmt: skip
    rows = rows_by_id(table, names)
    assert rows.rows == {"a": 0, "b": 1, "c/d": 2, "é": 3, "f": 4}
    assert rows.unknown == (("z", 7),)
    assert rows.twice == (("a", 8),)


def test_rows_name_images_by_the_name_of_their_file_if_no_other_has_it(tmp_path):
    files = {"a": "a/a_rgb.png", "b": "b/b_rgb.png", "c/x": "c/x.png", "d/x": "d/x.png"}
    names = image_names({i: tmp_path / path for i, path in files.items()}, tmp_path)
    table = read(tmp_path, "n,v\na_rgb.png,1\nb_rgb.png,2\nx.png,3\nc/x.png,4\n")
    rows = rows_by_id(table, names)
    assert rows.rows == {"a": 0, "b": 1, "c/x": 3}
    assert rows.unknown == (("x.png", 4),)


def test_numbers_of_rows_are_not_taken_for_ids_beside_a_column_of_files(tmp_path):
    names = image_names({f"{i}": tmp_path / f"{i}.jpg" for i in range(3)}, tmp_path)
    for head in ("", "id"):
        with pytest.raises(DataError, match=f"found '{head}' and 'file', which name different"):
            rows_by_id(read(tmp_path, f"{head},file,y\n0,2.jpg,1\n1,0.jpg,2\n2,1.jpg,1\n"), names)
        table = read(tmp_path, f"{head},file,y\n2,2.jpg,1\n0,0.jpg,2\n1,1.jpg,0\n")
        assert rows_by_id(table, names).rows == {"2": 0, "0": 1, "1": 2}
    assert rows_by_id(read(tmp_path, "n,y\n0,2\n1,0\n2,1\n"), names).rows == {
        "0": 0, "1": 1, "2": 2}  # fmt: skip


def test_an_image_in_place_of_column_names_is_refused(tmp_path):
    names = image_names({name: tmp_path / f"{name}.jpg" for name in ("a", "b", "id")}, tmp_path)
    with pytest.raises(DataError, match=r"found a row of the image 'a\.jpg' there; put a line"):
        rows_by_id(read(tmp_path, "a.jpg,1\nb.jpg,2\n"), names)
    assert rows_by_id(read(tmp_path, "id,v\na,1\n"), names).rows == {"a": 0}


def test_parquet_is_read_as_the_same_text(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    pytest.importorskip("pyarrow.parquet")
    columns = {"id": ["a", "b"], "age": [3, None], "x": [0.1, float("nan")], "on": [True, False]}
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "t.parquet")
    assert read_table(tmp_path / "t.parquet").columns == {
        "id": ("a", "b"), "age": ("3", ""), "x": ("0.1", ""), "on": ("1", "0")}  # fmt: skip
    pyarrow.parquet.write_table(pyarrow.table({"id": [["a"]]}), tmp_path / "l.parquet")
    with pytest.raises(DataError, match="cells must be text or numbers, found list"):
        read_table(tmp_path / "l.parquet")
    with pytest.raises(DataError, match="cannot be read as Parquet"):
        read(tmp_path, b"PAR1 and no more", "d.parquet")


def test_parquet_without_pyarrow_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UsageError, match=r"pip install 'gatesearch\[parquet\]'"):
        read(tmp_path, b"", "t.parquet")
