"""CLIP's byte-level BPE tokenizer, which gives the token ids of OpenAI's ``clip.tokenize``.

The vocabulary of 49,408 ids is 256 bytes, the same 256 bytes at the end of a word, 48,894 merges of two earlier ids,
and the two special tokens. ``assets/bpe_merges.npy`` holds the merges as pairs of ids in rank order, (48894, 2) uint16.
They are lines 2 to 48,895 of ``bpe_simple_vocab_16e6.txt.gz`` from openai/CLIP (MIT licence, (c) 2021 OpenAI); the test
rebuilds them from the copy that open_clip carries.
"""

from __future__ import annotations

import html
import warnings
from collections.abc import Iterable, Sequence
from functools import cache, cached_property
from itertools import pairwise
from pathlib import Path
from textwrap import shorten

import numpy as np
import regex
import torch

_MERGES = Path(__file__).with_name("assets") / "bpe_merges.npy"
VOCAB_SIZE = 49408
_SPECIAL = {"<|startoftext|>": 49406, "<|endoftext|>": 49407}
_START, _END = _SPECIAL.values()

# Case still matters after lower(): the long s matches 's only when case is ignored.
_WORDS = regex.compile(
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+", regex.IGNORECASE
)

# The cache holds at most this many chunks of at most this many characters: some 15 MB when full.
_CACHE_CHUNKS, _CACHE_CHARS = 1 << 16, 32


@cache
def _byte_symbols() -> dict[int, str]:
    """Map each byte to a printable character, in the order of the vocabulary (as in GPT-2 and CLIP)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}


def _clean(text: str) -> str:
    # ftfy is nearly all of the time spent, and neither it nor unescape changes printable ASCII without an ampersand.
    if not (text.isascii() and text.isprintable() and "&" not in text):
        import ftfy  # few texts need it, and it would be half of what importing this module costs

        text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return text.lower()


class SimpleTokenizer:
    """Convert text to ids and back; ``encoder`` maps each token's spelling to its id, ``decoder`` the reverse.

    In those spellings each byte is one printable character, and ``</w>`` ends a word.

    >>> SimpleTokenizer().encode("hello world!")
    [3306, 1002, 256]
    """

    def __init__(self) -> None:
        pairs = np.load(_MERGES, allow_pickle=False).astype(np.int64)
        self._merges = {pair: i for i, pair in enumerate((pairs[:, 0] << 16 | pairs[:, 1]).tolist(), start=512)}
        ids = {byte: i for i, byte in enumerate(_byte_symbols())}
        self._byte_ids = [ids[byte] for byte in range(256)]
        self._cache: dict[str, list[int]] = {}

    @cached_property
    def encoder(self) -> dict[str, int]:
        symbols = _byte_symbols().values()
        vocab = [*symbols, *(f"{symbol}</w>" for symbol in symbols)]
        for pair in self._merges:
            vocab.append(vocab[pair >> 16] + vocab[pair & 0xFFFF])
        return {token: i for i, token in enumerate(vocab)} | _SPECIAL

    @cached_property
    def decoder(self) -> dict[int, str]:
        return {i: token for token, i in self.encoder.items()}

    def encode(self, text: str) -> list[int]:
        """Return the ids of ``text``, no start or end added; a special token spelt out in it becomes its one id."""
        ids: list[int] = []
        for chunk in _clean(text).split():  # no word spans whitespace, so each chunk stands alone
            ids += self._cache.get(chunk) or self._encode_chunk(chunk)
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """Return the cleaned, lower-case text of ``ids``, a space after each word; U+FFFD where it is not UTF-8.

        Raises:
            KeyError: an id is outside the vocabulary.
        """
        bytes_of = {symbol: byte for byte, symbol in _byte_symbols().items()}
        spelling = "".join(self.decoder[int(i)] for i in ids)
        return bytes(bytes_of[symbol] for symbol in spelling).decode("utf-8", "replace").replace("</w>", " ")

    def _encode_chunk(self, chunk: str) -> list[int]:
        ids: list[int] = []
        for word in [chunk] if chunk.isalpha() else _WORDS.findall(chunk):
            ids += [_SPECIAL[word]] if word in _SPECIAL else self._merge(word)
        if len(chunk) <= _CACHE_CHARS:
            if len(self._cache) >= _CACHE_CHUNKS:
                self._cache.clear()
            self._cache[chunk] = ids
        return ids

    def _merge(self, word: str) -> list[int]:
        ids = [self._byte_ids[byte] for byte in word.encode()]
        ids[-1] += 256  # the form that ends a word
        known = self._merges.get
        ranks = [known(a << 16 | b, _START) for a, b in pairwise(ids)]  # what each pair becomes, or no id of a merge
        while ranks:
            merged = min(ranks)  # ids of merged pairs rise with their rank, so this is the merge learned first
            if merged == _START:
                break
            # The leftmost alone: what it forms was learned later, so the others of its kind come first again.
            i = ranks.index(merged)
            ids[i : i + 2] = [merged]
            del ranks[i]
            if i > 0:
                ranks[i - 1] = known(ids[i - 1] << 16 | merged, _START)
            if i < len(ranks):
                ranks[i] = known(merged << 16 | ids[i + 1], _START)
        return ids


@cache
def shared_tokenizer() -> SimpleTokenizer:
    """Return the one tokenizer that `tokenize` uses, built on the first call."""
    return SimpleTokenizer()


def tokenize(texts: str | Sequence[str], context_length: int = 77, truncate: bool = False) -> torch.Tensor:
    """Return the ids of one or N texts, (N, context_length) int32: start, the text, end, then zeros.

    Equal to OpenAI's ``clip.tokenize``, id for id. All released CLIP models have a ``context_length`` of 77.

    Raises:
        RuntimeError: a text is too long (as in CLIP); with ``truncate=True`` it is cut instead, and end stays last.
        TypeError: ``texts`` is neither a string nor a sequence of strings.
        ValueError: ``context_length`` leaves no room for start and end.
    """
    if context_length < 2:
        raise ValueError(f"context_length is {context_length}, expected 2 or more: start and end take one place each")
    texts = _as_list(texts)
    tokenizer = shared_tokenizer()
    result = np.zeros((len(texts), context_length), dtype=np.int32)
    for row, text in zip(result, texts, strict=True):
        ids = [_START, *tokenizer.encode(text), _END]
        if len(ids) > context_length:
            if not truncate:
                raise RuntimeError(
                    f"Input {shorten(text, 80, placeholder='...')} is too long for context length {context_length}: "
                    f"it has {len(ids)} tokens with start and end. Shorten it, or pass truncate=True to cut it."
                )
            ids[context_length - 1 :] = [_END]
        row[: len(ids)] = ids
    return torch.from_numpy(result)


def tokenize_cut(texts: Sequence[str], context_length: int = 77) -> torch.Tensor:
    """Tokenize data that nobody reads through: long texts are cut, and a warning says that there are some."""
    try:
        return tokenize(texts, context_length)
    except RuntimeError:
        warnings.warn(
            f"some texts have more than {context_length} tokens, and are cut there: what differs behind counts for "
            "nothing. `python -m alpha_clip.training.check` names those of a data set; shorten them",
            stacklevel=2,
        )
        return tokenize(texts, context_length, truncate=True)


def _as_list(texts: str | Sequence[str]) -> list[str]:
    if isinstance(texts, str):
        return [texts]
    if isinstance(texts, bytes) or not isinstance(texts, Iterable):
        raise TypeError(f"texts is {type(texts).__name__}, expected a string or a list of strings; decode bytes first")
    texts = list(texts)
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise TypeError(f"texts[{i}] is {type(text).__name__}, expected a string: convert it with str()")
    return texts
