"""Scans: every way to compress, bombs stopped early, broken UTF-8 found to the byte, nothing read twice."""

import bz2
import gzip
import json
import lzma
import os
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from minigpt.data.sources import scan as scan_module
from minigpt.data.sources.names import File
from minigpt.data.sources.scan import CHUNK, Scans, chunks, scan
from minigpt.errors import UserError

COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress,
    ".zst": lambda content: zstandard.ZstdCompressor().compress(content),
    ".bz2": bz2.compress,
    ".xz": lambda content: lzma.compress(content, preset=0),
}
each_compression = pytest.mark.parametrize("ending", COMPRESS)
TEXT = "".join(f"line {i} of {i * i}: naïve 🙂\r\n" for i in range(30_000)).encode()


def put(path: Path, content: bytes, *, kind: str = "text") -> File:
    path.write_bytes(content)
    return File(path, kind, path.suffix if path.suffix in COMPRESS else None)


def refusal(file: File) -> str:
    with pytest.raises(UserError) as caught:
        scan(file)
    message = str(caught.value)
    assert "\n" not in message
    assert str(file.path) in message
    return message


@each_compression
def test_a_compressed_file_comes_out_as_it_went_in(ending: str, tmp_path: Path) -> None:
    file = put(tmp_path / f"a{ending}", COMPRESS[ending](TEXT))
    parts = list(chunks(file))
    assert b"".join(parts) == TEXT
    assert max(map(len, parts)) <= CHUNK
    assert scan(file).n_bytes == len(TEXT)


@each_compression
def test_compressed_files_joined_with_cat_are_read_to_their_end(ending: str, tmp_path: Path) -> None:
    file = put(tmp_path / f"a{ending}", COMPRESS[ending](b"one ") + COMPRESS[ending](b"") + COMPRESS[ending](b"two"))
    assert b"".join(chunks(file)) == b"one two"


@each_compression
@pytest.mark.parametrize("left", [0.01, 0.5, 0.9999], ids="{:.2%}".format)
def test_a_compressed_file_that_is_cut_off_is_refused(left: float, ending: str, tmp_path: Path) -> None:
    whole = COMPRESS[ending](TEXT)
    assert f"is damaged or not a {ending} file" in refusal(
        put(tmp_path / f"a{ending}", whole[: int(left * len(whole))])
    )


@each_compression
def test_a_file_that_is_not_what_its_ending_says_is_refused(ending: str, tmp_path: Path) -> None:
    assert f"is damaged or not a {ending} file" in refusal(put(tmp_path / f"a{ending}", b"plain text\n" * 99))


@pytest.mark.parametrize("ending", [".gz", ".bz2", ".xz"])  # a zstd frame has a checksum only on demand
def test_a_compressed_file_with_one_wrong_byte_is_refused(ending: str, tmp_path: Path) -> None:
    content = bytearray(COMPRESS[ending](TEXT))
    content[len(content) // 2] ^= 1
    assert f"is damaged or not a {ending} file" in refusal(put(tmp_path / f"a{ending}", bytes(content)))


@pytest.fixture(scope="module")
def bombs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A gigabyte of zeros in each compression."""
    folder, zeros = tmp_path_factory.mktemp("bombs"), bytes(1 << 24)
    makers = {
        ".gz": gzip.compress(zeros, 1),
        ".bz2": bz2.compress(zeros),
        ".xz": lzma.compress(zeros, preset=0),
        ".zst": COMPRESS[".zst"](zeros),
    }
    for ending, part in makers.items():
        (folder / f"zeros{ending}").write_bytes(part * 64)
    return folder


@each_compression
def test_a_bomb_is_refused_soon_and_in_little_memory(ending: str, bombs: Path) -> None:
    tracemalloc.start()
    try:
        start = time.perf_counter()
        message = refusal(File(bombs / f"zeros{ending}", "text", ending))
        seconds, memory = time.perf_counter() - start, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert "decompresses to more than 100 times its length" in message
    assert memory < 64 << 20
    assert seconds < 20  # it decompresses some hundred MB; a gigabyte takes longer, the terabytes of a real one forever


def test_text_that_repeats_itself_is_no_bomb(tmp_path: Path) -> None:
    content = b"the same line again and again\n" * 1_000_000
    assert scan(put(tmp_path / "a.gz", gzip.compress(content))).n_bytes == len(content)


@pytest.mark.parametrize("place", [0, 3, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK - 2], ids=str)
@pytest.mark.parametrize("broken", [b"\xe9 ", b"\xf0\x9f\x99 ", b"\xff", b"\xed\xa0\x80", b"\xc0\x80"], ids=str)
@pytest.mark.parametrize("ending", ["", ".gz"])
def test_the_first_byte_that_is_not_utf8_is_found_also_at_the_border_of_chunks(
    ending: str, broken: bytes, place: int, tmp_path: Path
) -> None:
    content = b"x" * place + broken + b"y" * 10 + b"\xff"
    file = put(tmp_path / f"a{ending}", gzip.compress(content, 1) if ending else content)
    assert scan(file).bad_byte == place


def test_a_character_that_the_files_end_cuts_is_broken(tmp_path: Path) -> None:
    assert scan(put(tmp_path / "a", "naïve 🙂".encode()[:-1])).bad_byte == len("naïve ".encode())


def test_characters_across_the_border_of_chunks_are_whole(tmp_path: Path) -> None:
    assert scan(put(tmp_path / "a", b"xyz" + "🙂".encode() * (CHUNK // 2))).bad_byte is None


def test_tables_are_not_searched_for_broken_text(tmp_path: Path) -> None:
    assert scan(put(tmp_path / "a.parquet", b"\xff\xfe", kind="parquet")).bad_byte is None


@pytest.fixture
def count_reads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Files that are read, in order."""
    reads: list[Path] = []
    read = scan_module.scan

    def counted(file: File) -> scan_module.Scan:
        reads.append(file.path)
        return read(file)

    monkeypatch.setattr(scan_module, "scan", counted)
    return reads


def test_a_file_that_has_not_changed_is_not_read_again_by_another_program(
    tmp_path: Path, count_reads: list[Path]
) -> None:
    file = put(tmp_path / "a", b"text")
    first = Scans(tmp_path / "memory").of([file])
    assert Scans(tmp_path / "memory").of([file]) == first
    assert count_reads == [file.path]


def test_a_change_is_noticed_though_length_and_time_are_set_back(tmp_path: Path, count_reads: list[Path]) -> None:
    file = put(tmp_path / "a", b"text")
    os.utime(file.path, (1e9, 1e9))
    (first,) = Scans(tmp_path / "memory").of([file])
    file.path.write_bytes(b"tent")
    os.utime(file.path, (1e9, 1e9))
    (second,) = Scans(tmp_path / "memory").of([file])
    assert first.sha256 != second.sha256
    assert len(count_reads) == 2


def test_a_file_that_another_one_replaced_is_read_again(tmp_path: Path) -> None:
    file = put(tmp_path / "a", b"text")
    (first,) = Scans(tmp_path / "memory").of([file])
    put(tmp_path / "b", b"tent").path.replace(file.path)
    assert Scans(tmp_path / "memory").of([file]) != [first]


def test_a_file_that_is_written_while_it_is_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = put(tmp_path / "a", b"text")
    read = scan_module.scan

    def slow(file: File) -> scan_module.Scan:
        found = read(file)
        with file.path.open("ab") as more:
            more.write(b" and more")
        return found

    monkeypatch.setattr(scan_module, "scan", slow)
    with pytest.raises(UserError, match="a changes while it is read: wait until it is complete"):
        Scans(tmp_path / "memory").of([file])


@pytest.mark.parametrize(
    "damage",
    [b"", b"[]", b"{", b"3", b"\xff", b"[" * 100_000, b'{"%s": 3}', b'{"%s": {"state": %s}}'],
    ids=["empty", "list", "half", "number", "no UTF-8", "deep", "no entry", "half an entry"],
)
def test_a_damaged_memory_costs_one_more_read_and_nothing_else(damage: bytes, tmp_path: Path) -> None:
    file, memory = put(tmp_path / "a", b"text"), tmp_path / "memory"
    first = Scans(memory).of([file])
    state = json.dumps(json.loads(memory.read_bytes())[str(file.path)]["state"]).encode()
    holes = (os.fsencode(file.path), state)[: damage.count(b"%s")]
    memory.write_bytes(damage % holes if holes else damage)
    assert Scans(memory).of([file]) == first
    assert Scans(memory).of([file]) == first


def test_a_memory_that_cannot_be_written_is_done_without(tmp_path: Path) -> None:
    assert Scans(Path("/proc/none/memory")).of([put(tmp_path / "a", b"text")])[0].n_bytes == 4


def test_a_file_that_is_gone_or_may_not_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = put(tmp_path / "a", b"text")
    opened = Path.open

    def forbidden(path: Path, *arguments: object) -> object:
        if path == file.path:
            raise PermissionError(13, "Permission denied")
        return opened(path, *arguments)  # type: ignore[call-overload]

    monkeypatch.setattr(Path, "open", forbidden)
    assert refusal(file) == f"data.source: {file.path}: permission denied"
    monkeypatch.undo()
    file.path.unlink()
    assert refusal(file) == f"data.source: {file.path}: no such file or directory"
    with pytest.raises(UserError, match="no such file"):
        Scans(tmp_path / "memory").of([file])
