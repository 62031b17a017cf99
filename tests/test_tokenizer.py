# ruff: noqa: RUF001 - look-alike characters are what is tested
"""The tokenizer against open_clip's, which is OpenAI's own code but for the spelling of the special tokens."""

from __future__ import annotations

import gzip
import pickle
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from alpha_clip import tokenizer
from alpha_clip.tokenizer import SimpleTokenizer, tokenize

START, END = 49406, 49407

ALPHABETS = [
    "abcdefghijklmnopqrstuvwxyz",
    "ABCDEFGHIJKLMNOPQRSTUVWXYZ",
    "0123456789",
    "'\"’‘“”`´.,:;!?-_/\\()[]{}<>|@#$%^&*+=~",
    " \t\n\r\v\f\x1c\x1f\x85\xa0\u1680\u2003\u2028\u3000",
    "\x00\x01\x08\x0e\x1b\x7f\x80\x9d\xad\u200b\u200d\ufeff\ufffd\ufff9",
    "àéîõüçßøåæœıİſŁžñ",
    "e\u0301a\u0308n\u0303o\u031b",
    "ﬁﬂﬀＡｂ１ｱ｡²½Ⅻ①٣",
    "日本語中文汉字かなカナ한국어ไทย",
    "अआइकखגדהابتжзийλμ",
    "😀🎉👩🏽🐈\u200d⬛🇩🇪❤\ufe0f",
    "\ud83d\ude00\udfff",
]
PHRASES = [
    "don't we'll I'VE they're she'd I'm it's 'S ''t 'ſ",
    "&amp; &lt; &amp;amp; &hellip; &#39; &#x2019; &eacute; &EACUTE;",
    "&nosuch; &notin &lt;b&gt; <b> &#xD800; &#32;",
    "schÃ¶n cafÃ© â€œquotedâ€\x9d ItÃ¢â‚¬â„¢s Ð¿Ñ€Ð¸ voilÃ le",
    "\x1b[36;44mblue\x1b[0m",
    "a\r\nb\rc",
    "antidisestablishmentarianism",
    "x" * 70,
    "1234567890" * 3,
]


def random_text(rng: random.Random) -> str:
    """Up to eight pieces, each a run from one alphabet, a known trap, or any code points at all."""
    pieces = []
    for _ in range(rng.randint(0, 8)):
        kind = rng.random()
        if kind < 0.70:
            pieces.append("".join(rng.choices(rng.choice(ALPHABETS), k=rng.randint(1, 9))))
        elif kind < 0.95:
            phrase = rng.choice(PHRASES)
            pieces.append(rng.choice([phrase, *phrase.split()]))
        else:
            pieces.append("".join(chr(rng.randrange(0x110000)) for _ in range(rng.randint(1, 4))))
    return rng.choice(["", " "]).join(pieces)


@pytest.fixture(scope="module")
def oracle():
    return pytest.importorskip("open_clip", reason="pip install -e '.[test]'").tokenizer


def test_ids_equal_open_clip_on_random_texts(oracle):
    rng = random.Random(0)
    ours, theirs = SimpleTokenizer(), oracle.SimpleTokenizer()
    for _ in range(20_000):
        text = random_text(rng)
        assert ours.encode(text) == theirs.encode(text), repr(text)


def test_rows_equal_open_clip_on_captions_and_every_ascii_character(oracle):
    texts = [f"a{chr(i)}b {chr(i)} {chr(i)}{chr(i)}" for i in range(128)]
    texts += ["", "a photo of a cat", "A  Photo\nof\ta CAT.", "the quick brown fox " * 12]
    assert torch.equal(tokenize(texts, truncate=True).long(), oracle.tokenize(texts))


def test_the_asset_holds_the_merges_of_the_public_list(oracle):
    lines = gzip.decompress(Path(oracle.default_bpe()).read_bytes()).decode().split("\n")
    merges = [tuple(line.split()) for line in lines[1 : 49152 - 256 - 2 + 1]]
    ids = SimpleTokenizer().encoder
    stored = np.load(tokenizer._MERGES)
    assert (stored.dtype, stored.shape) == (np.dtype("<u2"), (48_894, 2))
    assert stored.tolist() == [[ids[a], ids[b]] for a, b in merges]


def test_encoder_equals_open_clip_but_for_the_special_tokens(oracle):
    ours, theirs = SimpleTokenizer(), oracle.SimpleTokenizer()
    assert list(ours.encoder)[:START] == list(theirs.encoder)[:START]
    assert ours.decoder == {i: token for token, i in ours.encoder.items()}
    assert len(ours.encoder) == 49_408


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("hello world!", [3306, 1002, 256]),
        ("a photo of a cat", [320, 1125, 539, 320, 2368]),
        ("", []),
        ("<|startoftext|>cat<|endoftext|>", [START, 2368, END]),
        ("<|StartOfText|> <|EndOfText|>", [START, END]),
    ],
)
def test_known_ids(text, ids):
    row = tokenize(text)[0].tolist()
    assert row == [START, *ids, END] + [0] * (75 - len(ids))


def test_special_tokens_have_clips_ids():
    encoder = SimpleTokenizer().encoder
    assert (encoder["<|startoftext|>"], encoder["<|endoftext|>"]) == (START, END)


@pytest.mark.parametrize("texts", ["a", ["a"], ("a",), np.array(["a"])])
def test_one_text_gives_one_int32_row(texts):
    ids = tokenize(texts)
    assert (ids.dtype, ids.shape) == (torch.int32, (1, 77))


def test_shapes():
    assert tokenize([]).shape == (0, 77)
    assert tokenize(["a", "b"], context_length=5).shape == (2, 5)
    assert tokenize("", context_length=2).tolist() == [[START, END]]


@pytest.mark.parametrize(
    ("text", "decoded"),
    [
        ("A Photo  of a cat's café 日本 🎉!", "a photo of a cat 's café 日本 🎉! "),
        ("naïve 12", "naïve 1 2 "),
        ("<|startoftext|>cat<|endoftext|>", "<|startoftext|>cat <|endoftext|>"),
    ],
)
def test_decode_returns_the_cleaned_text(text, decoded):
    bpe = SimpleTokenizer()
    assert bpe.decode(bpe.encode(text)) == decoded
    assert bpe.decode(torch.tensor(bpe.encode(text))) == decoded


def test_decode_equals_open_clip_on_random_ids(oracle):
    rng, ours, theirs = random.Random(0), SimpleTokenizer(), oracle.SimpleTokenizer()
    for _ in range(1_000):
        ids = [rng.randrange(START) for _ in range(rng.randint(0, 20))]
        assert ours.decode(ids) == theirs.decode(ids)


def test_decode_of_half_a_character_is_a_replacement_character():
    bpe = SimpleTokenizer()
    assert bpe.decode([bpe.encoder["ð"]]) == "\ufffd"
    with pytest.raises(KeyError, match="49408"):
        bpe.decode([49_408])


def test_what_is_cut_unread_is_told_of():
    with pytest.warns(UserWarning, match="more than 8 tokens, and are cut there"):
        ids = tokenizer.tokenize_cut(["a cat", "cat " * 9], 8)
    assert torch.equal(ids, tokenize(["a cat", "cat " * 9], 8, truncate=True))


def test_too_long():
    long = "cat " * 76
    message = r"^Input cat .* is too long for context length 77: it has 78 tokens.*truncate=True"
    with pytest.raises(RuntimeError, match=message):
        tokenize(["ok", long])
    row = tokenize(long, truncate=True)[0].tolist()
    assert row == [START, *[2368] * 75, END]
    assert tokenize("cat " * 75).tolist() == [row]


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (5, "texts is int, expected a string or a list of strings"),
        (None, "texts is NoneType"),
        (b"cat", "texts is bytes.*decode"),
        (["cat", None], r"texts\[1\] is NoneType, expected a string"),
        ([["cat"]], r"texts\[0\] is list"),
    ],
)
def test_wrong_types(texts, message):
    with pytest.raises(TypeError, match=message):
        tokenize(texts)


def test_context_length_too_small():
    with pytest.raises(ValueError, match="context_length is 1, expected 2 or more"):
        tokenize("cat", context_length=1)


def test_cache_is_bounded_and_changes_nothing(monkeypatch):
    monkeypatch.setattr(tokenizer, "_CACHE_CHUNKS", 3)
    bpe, text = SimpleTokenizer(), "one two three four one two five " + "y" * 40
    assert bpe.encode(text) == bpe.encode(text) == SimpleTokenizer().encode(text)
    assert len(bpe._cache) <= 3
    assert "y" * 40 not in bpe._cache


def test_pickles():
    bpe = pickle.loads(pickle.dumps(SimpleTokenizer()))
    assert bpe.encode("a photo of a cat") == [320, 1125, 539, 320, 2368]


def test_import_builds_nothing():
    code = "import alpha_clip.tokenizer as t; assert t.shared_tokenizer.cache_info().currsize == 0; t.tokenize('a')"
    subprocess.run([sys.executable, "-c", code], check=True)
