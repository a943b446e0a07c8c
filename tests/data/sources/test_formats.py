"""Formats: a document or an archive is named as what it is, with what to do, and text never is."""

import io
import tarfile
import zipfile
from pathlib import Path

import pytest

from minigpt.data.sources.formats import other_format


def zipped(*names: str) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as file:
        for name in names:
            first, _, text = name.partition("=")
            file.writestr(first, text or "text")
    return content.getvalue()


def tarred() -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as file:
        file.addfile(tarfile.TarInfo("a.txt"))
    return content.getvalue()


FORMATS = {
    "paper.pdf": (b"%PDF-1.7\n", "a PDF document: convert it with `pdftotext paper.pdf paper.txt`"),
    "named.txt": (b"%PDF-1.7\n", "a PDF document: convert it with `pdftotext named.txt named.plain.txt`"),
    "my novel.docx": (
        zipped("[Content_Types].xml", "word/document.xml"),
        "a Word document: convert it with `pandoc -t plain 'my novel.docx' -o 'my novel.txt'`",
    ),
    "a.epub": (zipped("mimetype=application/epub+zip"), "an EPUB book: convert it with `pandoc"),
    "a.odt": (zipped("mimetype=application/vnd.oasis.opendocument.text"), "an OpenDocument text: "),
    "a.xlsx": (zipped("[Content_Types].xml", "xl/workbook.xml"), "an Excel table: save it as CSV"),
    "a.zip": (zipped("a.txt"), "a zip archive: unpack it and name the folder"),
    "no ending": (zipped("a.txt"), "a zip archive"),
    "a.tar.gz": (tarred(), "a tar archive: unpack it"),
    "a.7z": (b"7z\xbc\xaf\x27\x1c\0\4", "a 7z archive"),
    "a.rar": (b"Rar!\x1a\x07\x01", "a RAR archive"),
    "a.rtf": (b"{\\rtf1\\ansi text}", "an RTF document"),
    "a.doc": (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an Office document"),
    "broken.docx": (b"\xff\xd8 no zip", "a Word document"),
    "a.log": (b"\x1f\x8b\x08\0", "compressed (.gz): rename it to end in .gz"),
    "b.parquet": (b"version https://git-lfs.github.com/spec/v1\n", "fetch the file with `git lfs pull`"),
}


@pytest.mark.parametrize("name", FORMATS)
def test_a_document_or_an_archive_is_named_with_what_to_do(name: str) -> None:
    content, expected = FORMATS[name]
    assert expected in str(other_format(content, Path(name)))


@pytest.mark.parametrize("name", ["a.txt", "book.zip.txt", "notes.docx", "a.pdf"])
def test_text_is_text_whatever_its_name(name: str) -> None:
    assert other_format(b"PK is not a magic word\n", Path(name)) is None
