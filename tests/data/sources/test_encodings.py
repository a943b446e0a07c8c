"""Encodings and formats: a file that is not the text it is read as is named as what it is, with what to do."""

import pytest

from minigpt.data.sources.encodings import TextDecoder, likely_encoding, other_unicode

FRENCH = "Le café est près de l'hôtel ; il a coûté 3 sous. « C'est très cher », dit-il.\n"
RUSSIAN = "Мой дядя самых честных правил, когда не в шутку занемог.\n"
HINDI = "सभी मनुष्य स्वतंत्र पैदा होते हैं और समान हैं\n"


@pytest.mark.parametrize(
    ("encoding", "text"),
    [
        ("cp1252", FRENCH),
        ("cp1252", "It’s a “quoted” line — with a dash, and plain English otherwise.\n"),
        ("cp1252", "plain English and no more than that, " * 20 + "a naïve word. " + "again plain. " * 20),
        ("cp1252", "Åsa åkte till Örebro på våren för att köpa ägg.\n"),
        ("mac_roman", FRENCH),
        ("cp1250", "Zażółć gęślą jaźń. Święta w Łodzi były śnieżne.\n"),
        ("cp1251", RUSSIAN),
        ("koi8_r", RUSSIAN),
        ("cp1253", "Στην αρχή ήταν ο λόγος, και ο λόγος ήταν προς τον Θεό.\n"),
        ("shift_jis", "吾輩は猫である。名前はまだ無い。どこで生れたかとんと見当がつかぬ。\n"),
        ("gb18030", "学而时习之，不亦说乎？有朋自远方来，不亦乐乎？\n"),
        ("big5", "學而時習之，不亦說乎？有朋自遠方來，不亦樂乎？\n"),
        ("cp949", "나는 학교에 갑니다. 오늘 날씨가 좋습니다.\n"),
    ],
)
@pytest.mark.parametrize("times", [1, 20])
def test_the_likely_encoding_is_named_and_shown(encoding: str, text: str, times: int) -> None:
    sample = text.encode(encoding) * times
    decoder = TextDecoder("utf-8")
    with pytest.raises(UnicodeDecodeError):
        decoder.decode(sample, final=True)
    assert decoder.bad_byte is not None
    advice = likely_encoding(sample, decoder.bad_byte, "utf-8")
    assert f"give --data.encoding {encoding}, " in advice
    shown = advice.split("reads ")[1].split(": give")[0][1:-1]
    assert len(shown) >= 10
    assert shown in " ".join((text * times).split())


def test_utf8_with_some_damage_is_named_as_that() -> None:
    sample = FRENCH.encode() * 3 + b"\xff" + FRENCH.encode()
    assert "it is UTF-8 but for a few bytes" in likely_encoding(sample, 3 * len(FRENCH.encode()), "utf-8")
    assert "give --data.encoding utf-8" in likely_encoding(FRENCH.encode(), 6, "ascii")


def test_bytes_that_are_no_text_are_not_guessed_at() -> None:
    assert "give its encoding as data.encoding" in likely_encoding(bytes(range(256)) * 9, 128, "utf-8")


@pytest.mark.parametrize(
    "text", ["hello\n", FRENCH, RUSSIAN, HINDI, "a\r\n" * 40], ids=["en", "fr", "ru", "hi", "short"]
)
@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"])
def test_utf16_and_utf32_are_told_from_each_other_with_and_without_a_mark(encoding: str, text: str) -> None:
    content, family = text.encode(encoding), encoding[:6]
    marked = "\ufeff".encode(encoding) + content
    for other in ("utf-8", "cp1252", "ascii"):
        assert f"give --data.encoding {encoding}" in str(other_unicode(content, other))
        assert str(other_unicode(marked, other)).endswith(f"by its byte-order mark: give --data.encoding {family}")
    assert other_unicode(content, encoding) is None
    assert other_unicode(marked, encoding) is None
    assert other_unicode(marked, family) is None
    assert f"give --data.encoding {encoding}" in str(other_unicode(content, family))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\n",
        b"\n\n\n\n",
        b"\t\r\n" * 9,
        b"zero\0byte",
        b"one\0two\0three\0",
        bytes(64),
        b"a",
        b"\x1b[31mred\x1b[0m",
    ],
    ids=repr,
)
def test_other_text_is_not_taken_for_utf16(content: bytes) -> None:
    assert other_unicode(content, "utf-8") is None


def test_a_mark_of_utf8_is_refused_where_another_encoding_is_named() -> None:
    assert other_unicode(b"\xef\xbb\xbftext", "utf-8") is None
    assert "is UTF-8 by its byte-order mark" in str(other_unicode(b"\xef\xbb\xbftext", "cp1252"))


@pytest.mark.parametrize("encoding", ["shift_jis", "gb18030", "utf-16", "utf-16-le", "utf-7", "cp1253", "iso2022_jp"])
@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_the_first_wrong_byte_is_found_in_any_encoding_and_any_chunks(encoding: str, size: int) -> None:
    text, bad = "Στη 名前 x\n".encode(encoding, "ignore"), {"utf-16-le": b"\x00\xd8x\0", "utf-16": b"\x00\xd8x\0"}
    content = text + bad.get(encoding, b"\xff\xff") + b"y" * 6
    with pytest.raises(UnicodeDecodeError) as expected:
        content.decode(encoding)
    decoder = TextDecoder(encoding)
    with pytest.raises(UnicodeError):
        for start in range(0, len(content), size):
            decoder.decode(content[start : start + size], final=start + size >= len(content))
    assert decoder.bad_byte == expected.value.start
