"""Small vocabularies: the token embedding has a row for some of CLIP's tokens, and one for all others.

The bundled model is stored packed: ``token_embedding.weight`` has row 0 for every token that was not in its training,
and row 1 + i for ``token_ids[i]``.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from itertools import groupby

import torch
from torch import Tensor, nn

from .errors import IncompatibleCheckpoint, WordsNeverRead
from .tokenizer import VOCAB_SIZE, shared_tokenizer

ROWS, IDS = "token_embedding.weight", "token_ids"


def expand(tensors: Mapping[str, Tensor], vocab_size: int = VOCAB_SIZE) -> dict[str, Tensor]:
    """Return packed weights with one row of the token embedding for each of CLIP's ids.

    Raises:
        IncompatibleCheckpoint: ids and rows do not belong together.
    """
    tensors = dict(tensors)
    packed, ids = tensors[ROWS], tensors.pop(IDS)
    rows = torch.zeros(vocab_size, dtype=torch.int64, device=packed.device)
    if len(packed) != len(ids) + 1 or not 0 <= int(ids.min()) <= int(ids.max()) < vocab_size:
        raise IncompatibleCheckpoint(f"token_ids are not those of {len(packed) - 1} of {vocab_size} tokens")
    rows[ids.long()] = torch.arange(1, len(ids) + 1, device=packed.device)
    tensors[ROWS] = packed[rows]
    return tensors


def pack(tensors: Mapping[str, Tensor], known: Tensor) -> dict[str, Tensor]:
    """Undo `expand`: keep rows for the ids in `known`, and for those that no longer have the row of all the others."""
    table = tensors[ROWS]
    unknown = torch.ones(len(table), dtype=torch.bool, device=table.device)
    unknown[known.long().to(table.device)] = False
    shared = table[unknown][-1:]
    ids = (~unknown | (table != shared).any(dim=1)).nonzero().flatten()
    return {**tensors, ROWS: torch.cat([shared, table[ids]]), IDS: ids.to(known.dtype)}


class UnknownWords:
    """A pre-hook for the token embedding, which warns of words that a model with a small vocabulary has never read.

    To the model they are all the same word. It warns once of each.
    """

    def __init__(self, known: Tensor) -> None:
        self.known = {0, *known.tolist()}  # 0 pads, behind the end of the text
        self.told: set[str] = set()  # words warned of already

    def __call__(self, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        if torch.compiler.is_compiling() or (args[0].is_cuda and torch.cuda.is_current_stream_capturing()):
            return
        self.warn(args[0])

    def unread(self, text: Tensor) -> set[str]:
        """Return the words in token ids of any shape that the model has never read."""
        words: set[str] = set()
        for known, ids in groupby(text.flatten().tolist(), self.known.__contains__):
            if not known:
                words.update(shared_tokenizer().decode(ids).split())
        return words

    def warn(self, text: Tensor) -> None:
        """Warn of the words in token ids of any shape that the model has never read, once of each."""
        words = self.unread(text) - self.told
        self.told |= words
        if words:
            warnings.warn(
                f"this model has never read {', '.join(map(repr, sorted(words)))}: such words all mean the same to it. "
                "Its vocabulary is small, see the model card; models by other names know them.",
                WordsNeverRead,
                stacklevel=3,
            )
