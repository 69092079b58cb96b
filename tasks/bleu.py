"""BLEU: a Method for Automatic Evaluation of Machine Translation (Papineni et al., ACL 2002), of a whole corpus.

    BLEU = 100 min(1, exp(1 - r / c)) (p_1 p_2 p_3 p_4)^(1/4)

with p_n the clipped n-gram precision, the fraction of n-grams of the outputs that occur in their targets, each counted
at most as often as in the target; c and r are the numbers of words of outputs and targets. Texts are tokenized as by
NIST's mteval-v13a, and a p_n of 0 counts as 1 / (2^k t_n) for the k-th such n, with t_n the number of n-grams: the
defaults of sacreBLEU (Post, 2018, arXiv:1804.08771), with the same results for one target per text.
"""

from __future__ import annotations

import collections
import math
import re
from collections.abc import Iterable, Sequence

ORDER = 4
_ESCAPED = {"&quot;": '"', "&amp;": "&", "&lt;": "<", "&gt;": ">"}
# Symbols are words, so are periods and commas that are not between digits, and a dash after a digit.
_CUTS = (
    (re.compile(r"([\{-\~\[-\` -\&\(-\+\:-\@\/])"), r" \1 "),
    (re.compile(r"([^0-9])([\.,])"), r"\1 \2 "),
    (re.compile(r"([\.,])([^0-9])"), r" \1 \2"),
    (re.compile(r"([0-9])(-)"), r"\1 \2 "),
)


def words(text: str) -> list[str]:
    """The words of a text, tokenized as by NIST's mteval-v13a."""
    text = text.rstrip().replace("<skipped>", "").replace("-\n", "").replace("\n", " ")
    if "&" in text:
        for escaped, letter in _ESCAPED.items():
            text = text.replace(escaped, letter)
    text = f" {text} "
    for pattern, replacement in _CUTS:
        text = pattern.sub(replacement, text)
    return text.split()


def bleu(written: Iterable[str], targets: Iterable[str]) -> float:
    """Corpus BLEU, 0 to 100, of outputs ``written`` with one target each, in the same order.

    Raises:
      ValueError: the numbers of outputs and targets differ.
    """
    shared, found = [0] * ORDER, [0] * ORDER
    length = wanted = 0
    for text, target in zip(written, targets, strict=True):
        ours, theirs = words(text), words(target)
        length, wanted = length + len(ours), wanted + len(theirs)
        for n in range(1, ORDER + 1):
            own = _grams(ours, n)
            shared[n - 1] += sum((own & _grams(theirs, n)).values())
            found[n - 1] += own.total()
    if not any(shared) or not all(found):
        return 0.0
    nothing, logarithm = 0, 0.0
    for same, count in zip(shared, found, strict=True):
        nothing += same == 0
        logarithm += math.log(same / count if same else 1 / (2**nothing * count)) / ORDER
    return 100 * min(1.0, math.exp(1 - wanted / length)) * math.exp(logarithm)


def _grams(tokens: Sequence[str], n: int) -> collections.Counter[tuple[str, ...]]:
    return collections.Counter(tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1))
