"""Byte-pair encoding (Sennrich et al. 2016) over the bytes of UTF-8: learned from captions, able to encode any text."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from heapq import heapify, heappop, heappush
from itertools import pairwise

Pair = tuple[int, int]

FIRST_MERGE = 257
"""The first id that stands for more than a byte: 0 is padding, 1 to 256 are the bytes."""

_WORD = re.compile(r" ?\w+| ?[^\w\s]")
_LEAST_COUNT = 2  # a pair that occurs once in all captions says nothing about other texts


def normalized(text: str) -> str:
    """Return the text as encoders of our own read it: compatible characters made one, lower case, single spaces."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


@dataclass(frozen=True)
class Tokenizer:
    """Texts <-> ids.

    Attributes:
        merges: pairs of ids; pair number k becomes the id ``FIRST_MERGE + k``.
    """

    merges: tuple[Pair, ...] = ()

    @property
    def vocabulary(self) -> int:
        """How many ids there are, padding included."""
        return FIRST_MERGE + len(self.merges)

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text, 1 to ``vocabulary - 1``; none for a blank text."""
        return [token for word in _words(text) for token in self._encode_word(word)]

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of these ids, normalized; padding is left out, and broken UTF-8 replaced."""
        data = b"".join(self._bytes[token] for token in ids)
        return data.decode("utf-8", errors="replace").removeprefix(" ")

    def _encode_word(self, word: str) -> list[int]:
        ids = [byte + 1 for byte in word.encode("utf-8", errors="replace")]
        while len(ids) > 1:
            ranks = [self._ranks.get(pair, len(self.merges)) for pair in pairwise(ids)]
            first = min(ranks)
            if first == len(self.merges):
                break
            ids = _merged(ids, self.merges[first], FIRST_MERGE + first)
        return ids

    @cached_property
    def _ranks(self) -> dict[Pair, int]:
        return {pair: rank for rank, pair in enumerate(self.merges)}

    @cached_property
    def _bytes(self) -> list[bytes]:
        pieces = [b"", *(bytes([byte]) for byte in range(256))]
        for left, right in self.merges:
            pieces.append(pieces[left] + pieces[right])
        return pieces


def learn(texts: Iterable[str], most_merges: int) -> Tokenizer:
    """Return the tokenizer that merges the most frequent pairs of these texts, one after another.

    Pairs never reach over two words. Of equally frequent pairs the one with the smallest ids comes first, so equal
    texts make equal tokenizers. It takes about a second for 15,000 different words.

    Args:
        texts: to learn from.
        most_merges: at which it ends; it ends earlier when no pair occurs twice.
    """
    counts = Counter(word for text in texts for word in _words(text))
    words = [[byte + 1 for byte in word.encode("utf-8", errors="replace")] for word in counts]
    weights = list(counts.values())
    pairs: Counter[Pair] = Counter()
    places: defaultdict[Pair, set[int]] = defaultdict(set)
    for index, ids in enumerate(words):
        _count(ids, index, weights[index], pairs, places)
    queue = [(-count, pair) for pair, count in pairs.items()]
    heapify(queue)
    merges: list[Pair] = []
    while queue and len(merges) < most_merges:
        count, best = heappop(queue)
        if pairs[best] != -count:
            continue  # it has changed since, and is in the queue again with its new count
        if -count < _LEAST_COUNT:
            break
        changed: set[Pair] = set()
        for index in places[best].copy():
            changed.update(pairwise(words[index]))
            _count(words[index], index, -weights[index], pairs, places)
            words[index] = _merged(words[index], best, FIRST_MERGE + len(merges))
            _count(words[index], index, weights[index], pairs, places)
            changed.update(pairwise(words[index]))
        for pair in changed:
            if pairs[pair] > 0:
                heappush(queue, (-pairs[pair], pair))
        merges.append(best)
    return Tokenizer(tuple(merges))


def _count(ids: Sequence[int], index: int, weight: int, pairs: Counter[Pair], places: dict[Pair, set[int]]) -> None:
    """Add the pairs of word `index` to the counts, or with a negative weight take them away."""
    for pair in pairwise(ids):
        pairs[pair] += weight
        if weight > 0:
            places[pair].add(index)
        else:
            places[pair].discard(index)


def _merged(ids: Sequence[int], pair: Pair, new: int) -> list[int]:
    """Return the ids with each occurrence of the pair, from the left, replaced by one id."""
    result: list[int] = []
    for token in ids:
        if result and (result[-1], token) == pair:
            result[-1] = new
        else:
            result.append(token)
    return result


def _words(text: str) -> list[str]:
    """Return words and signs, each with the space before it; the text begins as if behind a space."""
    return _WORD.findall(" " + normalized(text)) if text.strip() else []
