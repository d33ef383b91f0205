"""Lines keep their positions, however the bytes are cut into blocks and the object into splits."""

import gzip
import hashlib
import io
import itertools
import os
from collections.abc import Iterator

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.connectors.base import Raw
from penstock.connectors.formats import compression, csv_rows, json_lines
from penstock.connectors.formats.compression import Broken, blocks
from penstock.connectors.formats.lines import HEAD_BYTES, Line, bare_lines, lead, lines
from penstock.engine.errors import SpecError
from penstock.engine.plan import Split

ENDS = st.sampled_from([b"\n", b"\r\n", b"\n\n", b"\n \r\n\n"])
TEXTS = st.one_of(
    st.binary(max_size=8).map(lambda b: b.replace(b"\n", b"x")),
    st.sampled_from([b"{}", b"", b"  ", "é".encode(), b"\r"]),
)
CONTENTS = st.tuples(
    st.sampled_from([b"", b"\xef\xbb\xbf"]), st.lists(st.tuples(TEXTS, ENDS), max_size=8), TEXTS
).map(lambda parts: parts[0] + b"".join(text + end for text, end in parts[1]) + parts[2])  # fmt: skip


def split(start: int = 0, end: int | None = None, *, packed: str | None = None, uri: str = "a.jsonl") -> Split:
    return Split(f"a#{start}", "a", 0, 0, uri, start, end, compression=packed)


def chunks(content: bytes, start: int, size: int) -> Iterator[bytes]:
    return (content[at : at + size] for at in range(start, len(content), size))


def naive(content: bytes) -> list[tuple[int, bytes]]:
    """What the lines are, said in the plainest way."""
    found: list[tuple[int, bytes]] = []
    at = 0
    for piece in content.split(b"\n"):
        text = piece.removesuffix(b"\r")
        if text.strip():
            found.append((at, text))
        at += len(piece) + 1
    return found


@given(CONTENTS, st.integers(1, 9))
def test_lines_are_what_a_plain_split_says(content: bytes, size: int) -> None:
    """Whatever the block size: the same lines at the same positions, blank ones dropped, CR and LF stripped."""
    assert list(lines(chunks(content, 0, size), 0, None)) == naive(content)


@given(CONTENTS, st.integers(1, 9), st.integers(0, 40))
def test_a_range_opened_anywhere_gives_the_suffix(content: bytes, size: int, start: int) -> None:
    """Opened at position p: exactly the lines whose first byte is at p or behind it."""
    whole = [line for line in naive(content) if line[0] >= start]
    assert list(lines(chunks(content, lead(start), size), start, None)) == whole


@given(CONTENTS, st.lists(st.integers(0, 60), max_size=4), st.integers(1, 9))
def test_splitting_never_changes_the_items(content: bytes, cuts: list[int], size: int) -> None:
    """Any cuts, in the middle of a CRLF or a character as well: every line comes once, at the same position."""
    edges = [0, *sorted(min(cut, len(content)) for cut in cuts), len(content)]
    found = [
        line
        for start, end in itertools.pairwise(edges)
        for line in lines(chunks(content, lead(start), size), start, end)
    ]
    assert found == naive(content)


@given(CONTENTS, st.integers(0, 60))
def test_records_carry_the_same_positions_in_every_split(content: bytes, cut: int) -> None:
    """The reader of JSON lines: two splits give the records of one, BOM stripped, bad UTF-8 told."""
    cut = min(cut, len(content))
    whole = list(json_lines.records(io.BytesIO(content), split(0, len(content)), 0, 100))
    first = list(json_lines.records(io.BytesIO(content), split(0, cut), 0, 100))
    second = list(json_lines.records(io.BytesIO(content), split(cut, len(content)), cut, 100))
    assert [(r.position.position, r.data, r.error) for r in first + second] == [
        (r.position.position, r.data, r.error) for r in whole
    ]


def test_a_line_over_the_limit_is_told_and_not_held() -> None:
    """100 MB in one line: head, true length and hash are kept; the lines beside it are whole; memory stays flat."""
    import tracemalloc

    def content() -> Iterator[bytes]:
        yield b'{"a":1}\n'
        for _ in range(400):
            yield b"x" * 262_144
        yield b'\n{"b":2}\n'

    tracemalloc.start()
    before, long, after = list(lines(content(), 0, None))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert before == (0, b'{"a":1}')
    assert after == (8 + 400 * 262_144 + 1, b'{"b":2}')
    assert isinstance(long[1], Line)
    assert (long[0], len(long[1].data), long[1].length) == (8, HEAD_BYTES, 400 * 262_144)
    assert len(long[1].digest) == 32
    assert peak < 30_000_000


@given(st.integers(1, 30), st.integers(1, 12))
def test_the_limit_is_exact_whatever_the_blocks(length: int, size: int) -> None:
    """A line of exactly the limit is a record, one byte more is not."""
    content = b"a" * length + b"\r\nb\n"
    (at, first), second = lines(chunks(content, 0, size), 0, None, 20)
    assert at == 0
    assert second == (length + 2, b"b")
    assert isinstance(first, Line) == (length > 20)


def errors(records: Iterator[Raw]) -> list[tuple[int, str]]:
    return [(raw.position.position, raw.error[0]) for raw in records if raw.error]


def test_invalid_utf8_is_a_record_with_an_error() -> None:
    """Only the bad line is lost, and its bytes are kept."""
    good, bad, last = json_lines.records(io.BytesIO(b'{"a":1}\n{"a":"\xff"}\n{"a":2}'), split(0, 30), 0, 100)
    assert (good.error, last.error) == (None, None)
    assert bad.error is not None
    assert bad.error[0] == "malformed"
    assert "UTF-8" in bad.error[1]
    assert bad.data == b'{"a":"\xff"}'


PACKERS = {"gzip": gzip.compress, "zstd": zstandard.ZstdCompressor().compress}


@pytest.mark.parametrize("packed", PACKERS)
@pytest.mark.parametrize("start", [0, 1, 8, 700_000])
def test_compressed_lines_have_plain_positions(packed: str, start: int) -> None:
    """Positions are offsets in the plain content; several members or frames are one stream."""
    half = b"".join(b'{"n":%d}\n' % n for n in range(50_000))
    file = io.BytesIO(PACKERS[packed](half) + PACKERS[packed](half))
    found = [
        (raw.position.position, raw.data)
        for raw in json_lines.records(file, split(packed=packed), start, 100)
    ]  # fmt: skip
    assert found == [line for line in naive(half + half) if line[0] >= start]


@pytest.mark.parametrize("packed", PACKERS)
def test_a_compressed_file_cut_short_gives_its_lines_and_one_error(packed: str) -> None:
    """What came before the cut is read; the cut itself is a record that says so, the same when opened again."""
    content = b"".join(os.urandom(20).hex().encode() + b"\n" for _ in range(20_000))
    cut = PACKERS[packed](content)[:-50_000]
    records = list(json_lines.records(io.BytesIO(cut), split(packed=packed), 0, 1000))
    *whole, last = records
    assert len(whole) > 1000
    assert [raw.data + b"\n" for raw in whole] == content.splitlines(keepends=True)[: len(whole)]
    assert last.error is not None
    assert last.error[0] == "source_lost"
    assert "cut short" in last.error[1]
    place = last.position.position
    again = list(json_lines.records(io.BytesIO(cut), split(packed=packed), place, 1000))
    assert errors(iter(again)) == [(place, "source_lost")]
    assert not list(json_lines.records(io.BytesIO(cut), split(packed=packed), place + 1, 1000))


@given(st.integers(0, 60), st.integers(1, 9), st.booleans())
def test_where_a_stream_breaks_the_line_under_way_keeps_its_head_and_length(length: int, size: int, bare: bool) -> None:
    """Also one that had grown over the limit: its dead letter shows what there was of it."""

    def content() -> Iterator[bytes]:
        yield from chunks(b"ab\n" + b"x" * length, 0, size)
        raise Broken("cut short")

    read = bare_lines if bare else lines
    *_, (at, last) = read(content(), 0, None, 20)
    assert (at, last) == (3, Line(b"x" * length, length, broken="cut short"))


@pytest.mark.parametrize("packed", PACKERS)
def test_a_file_that_is_not_what_its_name_says_is_one_error(packed: str) -> None:
    """A `.gz` that is no gzip: one record with an error, no traceback."""
    assert errors(json_lines.records(io.BytesIO(b'{"a":1}\n'), split(packed=packed), 0, 100)) == [(0, "source_lost")]


def test_a_zstd_bomb_comes_in_small_blocks() -> None:
    """Gigabytes in a few kilobytes never stand in memory at once."""
    bomb = zstandard.ZstdCompressor(level=19).compress(bytes(300_000_000))
    assert max(map(len, blocks(io.BytesIO(bomb), "zstd"))) < 80_000_000


def test_an_empty_compressed_file_has_no_lines() -> None:
    """Nothing, and no error."""
    for packed, pack in PACKERS.items():
        assert not list(json_lines.records(io.BytesIO(pack(b"")), split(packed=packed), 0, 100))
        assert not list(blocks(io.BytesIO(b""), packed))


def test_gzip_padding_and_garbage_are_told_apart() -> None:
    """Zeros behind the last member are padding (tapes do it); anything else is damage."""
    assert b"".join(blocks(io.BytesIO(gzip.compress(b"ab") + bytes(600_000)), "gzip")) == b"ab"
    with pytest.raises(Broken):
        list(blocks(io.BytesIO(gzip.compress(b"ab") + b"rubbish"), "gzip"))


@given(st.integers(15, 30), st.sampled_from([b"\n", b"\r\n", b"", b"\r"]), st.integers(1, 40))
def test_a_long_lines_length_is_the_same_whatever_the_blocks(length: int, end: bytes, size: int) -> None:
    """All before its LF, a CR too: what a dead letter says of a line hangs on the line alone."""
    line = b"a" * length + end.removesuffix(b"\n")
    told = (len(line), hashlib.blake2b(line, digest_size=16).hexdigest())
    for found in (
        [one for _, one in lines(chunks(b"a" * length + end, 0, size), 0, None, 12)],
        [one for _, one in csv_rows._framed(bare_lines(chunks(b"a" * length + end, 0, size), 0, None, 12), ",", 12)],  # pyright: ignore[reportPrivateUsage]
    ):
        assert [(one.length, one.digest) for one in found if isinstance(one, Line)] == [told]


PACKERS = {None: bytes, "gzip": gzip.compress, "zstd": zstandard.compress}


@settings(max_examples=300)
@given(CONTENTS, st.lists(st.integers(0, 60), max_size=4), st.integers(1, 9), st.sampled_from(list(PACKERS)))
def test_json_lines_are_the_same_from_any_split_resume_and_packing(
    content: bytes, cuts: list[int], size: int, packed: str | None
) -> None:
    """Records, errors and positions are those of the whole file; a packed one in two members is one split."""

    def read(data: bytes, start: int, end: int | None, at: int) -> list[tuple[int, object]]:
        found = json_lines.records(io.BytesIO(data), split(start, end, packed=packed), at, 6)
        return [(raw.position.position, (raw.data, raw.error, raw.length, raw.digest)) for raw in found]

    edges = [0, *sorted(min(cut, len(content)) for cut in cuts), len(content)]
    data = b"".join(PACKERS[packed](part) for part in (content[: edges[1]], content[edges[1] :]))
    end = None if packed else len(content)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compression, "BLOCK", size)
        whole = read(data, 0, end, 0)
        if not packed:
            assert whole == [one for a, b in itertools.pairwise(edges) for one in read(data, a, b, a)]
        for at in (*edges, *(position + 1 for position, _ in whole)):
            assert read(data, 0, end, at) == [one for one in whole if one[0] >= at]


# CSV


def csv_split(start: int = 0, end: int | None = None) -> Split:
    return Split(f"a#{start}", "a", 0, 0, "a.csv", start, end, format="csv")


def rows(content: bytes, start: int = 0, limit: int = 1000) -> list[tuple[int, bytes | tuple[str, str]]]:
    found = csv_rows.records(io.BytesIO(content), csv_split(0, len(content)), start, limit)
    return [(raw.position.position, raw.error or raw.row_json or b"") for raw in found]


def test_csv_rows_are_objects_of_strings() -> None:
    """The header names the columns; CRLF, BOM and blank lines are no part of a value."""
    assert rows(b"\xef\xbb\xbfa,b\r\n1,x\r\n\r\n2,\xc3\xa9") == [
        (8, b'{"a":"1","b":"x"}'),
        (15, '{"a":"2","b":"é"}'.encode()),
    ]


def test_csv_quotes_may_hold_line_breaks_commas_and_quotes() -> None:
    """A row's position is its first byte, however many lines it has."""
    content = b'a,b\n"one\n\ntwo, ""three""\r\n",x\n4,5" pipe\n"BOM",7\n'
    assert rows(content) == [
        (4, b'{"a":"one\\n\\ntwo, \\"three\\"\\r\\n","b":"x"}'),
        (30, b'{"a":"4","b":"5\\" pipe"}'),
        (40, b'{"a":"BOM","b":"7"}'),
    ]
    assert rows(content, 5) == rows(content)[1:]


def test_ragged_csv_rows_are_told_with_both_counts() -> None:
    """Too few and too many columns are dead letters; the rows around them are not."""
    (_, first), (_, short), (_, long), (_, last) = rows(b"a,b\n1,2\n3\n4,5,6\n7,8\n")
    assert (first, last) == (b'{"a":"1","b":"2"}', b'{"a":"7","b":"8"}')
    assert short == ("malformed", "the row has 1 columns, the header has 2")
    assert long == ("malformed", "the row has 3 columns, the header has 2")


def test_a_row_of_empty_fields_is_a_row_whatever_parts_them() -> None:
    """Tabs are white space; a row of them is as little blank as one of commas, at the end of the file too."""
    for name, divider in (("a.tsv", b"\t"), ("a.csv", b",")):
        content = divider.join([b"a", b"b"]) + b"\n" + divider + b"\r\n  \n\n" + divider
        found = csv_rows.records(io.BytesIO(content), split(0, len(content), uri=name), 0, 100)
        assert [raw.row_json for raw in found] == [b'{"a":"","b":""}'] * 2


@pytest.mark.parametrize("row", [b"1\r2,x", b'1\r2,"x"', b"\r1,x"])
def test_a_carriage_return_outside_of_quotes_is_told(row: bytes) -> None:
    """Whether another field of the row has quotes or not: it may be the end of a row that would be lost in this one."""
    assert rows(b"a,b\n" + row + b"\n3,y\r\n") == [
        (4, ("malformed", "a CR stands outside of quotes")),
        (5 + len(row), b'{"a":"3","b":"y"}'),
    ]


def test_a_quote_that_never_closes_ends_in_one_error_in_flat_memory() -> None:
    """The rest of the file is in it; it is told as too long, with its full length."""
    content = b'a,b\n1,2\n"3,4\n' + b"5,6\n" * 1000
    (_, good), (at, bad) = rows(content)
    assert good == b'{"a":"1","b":"2"}'
    assert at == 8
    assert bad[0] == "too_large"
    (_, small) = rows(b'a,b\n1,2\n"3,4\n')
    assert small[1][0] == "malformed"


@pytest.mark.parametrize("size", [1, 2, 3, 7, 50, 10_000])
@pytest.mark.parametrize(
    "long",
    [
        b'1,"a\n' + b"x" * 1200 + b'\n2,not a row\n"\n',
        b'1,"' + b"x" * 1200 + b'\n2,not a row\n"\n',
        b'1,"' + b'""' * 600 + b'\n2,not a row\n"\n',
        b'1,"a\n' + b'x""' * 400 + b'",y\n',
        b"1," + b'5" pipe,' * 130 + b"\n",
        b'1,"a"' + b'"\nb"' * 300 + b"\n",
    ],
    ids=[
        "a long line in quotes",
        "quotes that a long line opens",
        "doubled ones",
        "closed in it",
        "stray",
        "many lines",
    ],
)
def test_a_line_over_the_limit_keeps_its_quotes(long: bytes, size: int) -> None:
    """It is one row and one error, whose length and hash are the whole row's: what stands behind it in the field is no
    row of its own, that would be sent and paid for."""
    content = b"id,text\n" + long + b"3,c\n"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compression, "BLOCK", size)
        found = list(csv_rows.records(io.BytesIO(content), csv_split(0, len(content)), 0, 1000))
    assert [(raw.position.position, raw.row_json) for raw in found] == [
        (8, None),
        (8 + len(long), b'{"id":"3","text":"c"}'),
    ]
    assert found[0].error is not None
    assert found[0].error[0] == "too_large"
    assert found[0].length == len(long) - 1
    assert found[0].digest == hashlib.blake2b(long[:-1], digest_size=16).hexdigest()


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("text", ["x" * 18, '"' + "x" * 16 + '"', '"' + "x\n" * 8 + '"'])
def test_the_limit_of_a_csv_row_is_exact(text: str, end: str) -> None:
    """A row of exactly the limit, without its end, is a record; one byte more is not."""
    content = f"id,text{end}1,{text}{end}".encode()
    assert [type(found) for _, found in rows(content, limit=20)] == [bytes]
    assert [found[0] for _, found in rows(content, limit=19)] == ["too_large"]


@pytest.mark.parametrize(
    "content", [b"id,text\r1,hello\r2,world\r", b'"id","text"\r"1","hello"\r', b"id\r" + b"1\r" * 800]
)
def test_csv_whose_lines_end_in_cr_alone_is_refused(content: bytes) -> None:
    """It would be one long header and no row: a run that did nothing, and said nothing."""
    with pytest.raises(SpecError, match="CR alone"):
        csv_rows.header(io.BytesIO(content), "old.csv", None, 1000)
    (_, error), *others = rows(content)
    assert (error[0], others) == ("source_lost", [])
    assert "CR alone" in str(error[1])


def test_a_column_may_have_a_line_break_in_its_name() -> None:
    """In quotes."""
    assert rows(b'"a\r",b\r\n1,2\r\n') == [(8, b'{"a\\r":"1","b":"2"}')]


def test_a_bad_csv_value_is_told() -> None:
    """Invalid UTF-8 and text behind a closing quote."""
    assert [(at, error[0]) for at, error in rows(b'a,b\n\xff,1\n"x"y,2\n')] == [(4, "malformed"), (8, "malformed")]


FIELDS = st.lists(st.sampled_from(["a", "b", ",", '"', "\n", "\r\n", " ", "é"]), max_size=6).map("".join)


@settings(max_examples=200)
@given(st.lists(st.tuples(FIELDS, FIELDS), max_size=6), st.sampled_from(["\n", "\r\n"]), st.integers(1, 7))
def test_csv_written_by_python_comes_back(table: list[tuple[str, str]], end: str, size: int) -> None:
    """What the csv module writes, we read; opened at any row's position we read the rest."""
    import csv

    text = io.StringIO()
    writer = csv.writer(text, lineterminator=end)
    writer.writerows([("x", "y"), *table])
    content = text.getvalue().encode()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compression, "BLOCK", size)
        found = rows(content)
        import msgspec

        assert [tuple(msgspec.json.decode(row).values()) for _, row in found] == table
        for n, (at, _) in enumerate(found):
            assert rows(content, at) == found[n:]
