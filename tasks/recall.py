"""Recall of earlier tokens: five procedural tasks. Each docstring gives the layout, the source of the sizes, and
chance.

In the layouts below ``_`` is a filler and the answers, in brackets, are what the model must predict at
the token above them.
"""

from __future__ import annotations

import numpy as np

from tasks.procedural import Procedural
from tasks.registry import register


@register("selective_copying")
class SelectiveCopying(Procedural):
    """Selective copying (A. Gu, T. Dao, arXiv:2312.00752, section 4.1 and appendix E.1).

        _ a _ _ b _ c | ? ? ?
                       [a b c]

    Data tokens are at random places among fillers; at the markers the model must output them in order. The gaps vary,
    so no fixed convolution solves it. The paper's sizes: 4096 tokens, 16 of them data, a vocabulary of 16. Chance is 1
    / (vocab_size - 2): a guess among all tokens except the filler and the marker.

    Args:
      length: number of tokens before the markers.
      test_length: the same for the test; None for ``length``.
      memorize: number of data tokens.
      vocab_size: filler 0, marker vocab_size - 1, and the data tokens between.
      num_eval: number of examples of validation, and of test.
      seed: seed of all examples.

    Raises:
      ValueError: ``memorize`` below 1, ``vocab_size`` below 4, or a length below ``memorize``.
    """

    def __init__(
        self,
        length: int = 4096,
        test_length: int | None = None,
        memorize: int = 16,
        vocab_size: int = 16,
        num_eval: int = 512,
        seed: int = 0,
    ):
        if memorize < 1:
            raise ValueError(f"memorize is at least 1, not {memorize}")
        if vocab_size < 4:
            raise ValueError(f"vocab_size is at least 4, not {vocab_size}: a filler, a marker and two data tokens")
        self.memorize, self.vocab_size, self.chance = memorize, vocab_size, 1 / (vocab_size - 2)
        self.shortest = memorize
        super().__init__(length, test_length or length, num_eval, seed)

    def make(self, rng: np.random.Generator, length: int, training: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        del training
        data = rng.integers(1, self.vocab_size - 1, self.memorize)
        tokens = np.zeros(length + self.memorize, np.int32)
        tokens[np.sort(rng.choice(length, self.memorize, replace=False))] = data
        tokens[length:] = self.vocab_size - 1
        targets = np.zeros_like(tokens)
        targets[length:] = data
        return tokens, targets, np.arange(len(tokens)) >= length


@register("induction_heads")
class InductionHeads(Procedural):
    """Induction heads (C. Olsson et al., arXiv:2209.11895; as a task with these sizes in arXiv:2312.00752, section 4.1
    and appendix E.1).

        c b S a d b c S
                      [a]

    A special token occurs once among random ones, and again at the end, where the model must output the token that
    followed the first occurrence. The paper trains with 256 tokens and a vocabulary of 16, and tests on 64 to 1 048 576
    tokens. Chance is 1 / (vocab_size - 1): a guess among all tokens except the special one.

    Args:
      length: number of tokens of the longest training example, and of validation.
      test_length: number of tokens of test examples.
      shortest_length: number of tokens of the shortest training example; None for ``length``, as in the paper. Shorter
        examples make learning faster. The lengths are log-uniform, the tokens after the question are random, and
        validation and test have exactly the full length.
      vocab_size: the special token is vocab_size - 1.
      num_eval: number of examples of validation, and of test.
      seed: seed of all examples.

    Raises:
      ValueError: ``vocab_size`` below 3, or lengths out of range.
    """

    shortest = 3

    def __init__(
        self,
        length: int = 256,
        test_length: int = 1024,
        shortest_length: int | None = None,
        vocab_size: int = 16,
        num_eval: int = 512,
        seed: int = 0,
    ):
        if vocab_size < 3:
            raise ValueError(f"vocab_size is at least 3, not {vocab_size}: the special token and two others")
        self.vocab_size, self.chance = vocab_size, 1 / (vocab_size - 1)
        super().__init__(length, test_length, num_eval, seed)
        self.shortest_length = length if shortest_length is None else shortest_length
        if not self.shortest <= self.shortest_length <= length:
            raise ValueError(f"shortest_length is from {self.shortest} to length = {length}, not {shortest_length}")

    def make(self, rng: np.random.Generator, length: int, training: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        size = length
        if training and self.shortest_length < length:
            size = int(self.shortest_length * ((length + 1) / self.shortest_length) ** rng.random())
        tokens = rng.integers(0, self.vocab_size - 1, length)
        place = int(rng.integers(size - 2))
        tokens[[place, size - 1]] = self.vocab_size - 1
        targets = np.zeros_like(tokens)
        targets[size - 1] = tokens[place + 1]
        return tokens, targets, np.arange(length) == size - 1


@register("copying")
class Copying(Procedural):
    """Copying a random string (S. Jelassi et al., arXiv:2402.01032, section 3.1), also the COPY of R. Ren et al.,
    arXiv:2410.03810.

        < b a c > b a
                [b a c]

    A string of random letters between a begin and a copy token, then the string again; each letter is predicted given
    the true letters before it. Training strings have random lengths up to ``length``, those of validation and test
    exactly the full length. Chance is 1 / letters. C. Cui et al., arXiv:2406.16168, study MLPs with it.

    Args:
      length: number of letters of the longest training string, and of validation.
      test_length: number of letters of test strings.
      letters: size of the alphabet, without the begin and copy tokens.
      shortest_string: number of letters of the shortest training string.
      num_eval: number of examples of validation, and of test.
      seed: seed of all examples.

    Raises:
      ValueError: ``shortest_string`` not from 1 to ``length``.
    """

    paper = (124,)

    def __init__(
        self,
        length: int = 64,
        test_length: int = 128,
        letters: int = 26,
        shortest_string: int = 1,
        num_eval: int = 512,
        seed: int = 0,
    ):
        if not 1 <= shortest_string <= length:
            raise ValueError(f"shortest_string is from 1 to length = {length}, not {shortest_string}")
        self.letters, self.shortest_string = letters, shortest_string
        self.vocab_size, self.chance = letters + 2, 1 / letters
        super().__init__(length, test_length, num_eval, seed)

    def make(self, rng: np.random.Generator, length: int, training: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        size = int(rng.integers(self.shortest_string, length + 1)) if training else length
        begin, copy = self.letters, self.letters + 1
        string = rng.integers(0, self.letters, size)
        tokens = np.full(2 * length + 1, begin, np.int32)
        tokens[1 : size + 1] = string
        tokens[size + 1] = copy
        tokens[size + 2 : 2 * size + 1] = string[:-1]
        targets = np.full_like(tokens, begin)
        targets[size + 1 : 2 * size + 1] = string
        place = np.arange(len(tokens))
        return tokens, targets, (place > size) & (place <= 2 * size)


@register("multi_query_recall")
class MultiQueryRecall(Procedural):
    """Multi-query associative recall (S. Arora et al., arXiv:2312.04927, section 4 and appendix E).

        k1 v1 k2 v2 | _ k2 _ _ k1 _
                       [v2]   [v1]

    Pairs of a key and a value, then each key once more, at distances that follow a power law; there the model must
    output its value. Keys are in the lower half of the vocabulary, values in the upper half. The paper's sizes: a
    vocabulary of 8192, lengths of 64 to 512 with 4 to 64 pairs. Chance is 1 / pairs: a guess among the values shown.

    Args:
      length: number of tokens of training and validation, pairs and queries together.
      test_length: number of tokens of the test.
      pairs: number of keys; the same in the test.
      vocab_size: number of tokens, even.
      power: exponent of the distances: the weight of a distance d is d ** (power - 1).
      random_filler: fillers are random values instead of a single token.
      overwritten: number of keys, at most all, that are stored twice, with different values, of which the last counts.
        Pairs are then in random order, and each key is still queried once; chance is 1 / (pairs + overwritten), a guess
        among all values shown.
      num_eval: number of examples of validation, and of test.
      seed: seed of all examples.

    Raises:
      ValueError: fewer than 2 pairs, an odd or too small ``vocab_size``, ``overwritten`` not from 0 to ``pairs``, or a
        length without room for pairs and queries.
    """

    def __init__(
        self, length: int = 64, test_length: int = 256, pairs: int = 8, vocab_size: int = 8192, power: float = 0.01,
        random_filler: bool = True, overwritten: int = 0, num_eval: int = 512, seed: int = 0,
    ):  # fmt: skip
        if not 0 <= overwritten <= pairs:
            raise ValueError(f"overwritten is from 0 to pairs={pairs}, not {overwritten}")
        stored = pairs + overwritten
        if pairs < 2 or vocab_size % 2 or vocab_size // 2 <= stored:
            raise ValueError(
                f"at least 2 pairs, and an even vocab_size above {2 * stored}: pairs={pairs}, vocab_size={vocab_size}"
            )
        self.pairs, self.vocab_size, self.power, self.random_filler = pairs, vocab_size, power, random_filler
        self.overwritten, self.chance, self.shortest = overwritten, 1 / stored, 4 * pairs + 2 * overwritten
        super().__init__(length, test_length, num_eval, seed)

    def make(self, rng: np.random.Generator, length: int, training: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        del training
        pairs, stored, half = self.pairs, self.pairs + self.overwritten, self.vocab_size // 2
        keys = 1 + rng.choice(half - 1, pairs, replace=False)  # 0 is the filler
        values = half + rng.choice(half, stored, replace=False)
        tokens = half + rng.integers(0, half, length) if self.random_filler else np.zeros(length, np.int64)
        order = np.arange(pairs)
        if self.overwritten:
            order = rng.permutation(np.append(order, rng.choice(pairs, self.overwritten, replace=False)))
        tokens[0 : 2 * stored : 2], tokens[1 : 2 * stored : 2] = keys[order], values
        last = np.zeros(pairs, np.int64)
        np.maximum.at(last, order, np.arange(stored))
        # A query and the token after it take a slot of two, so that what follows a query is never a query.
        slots = (length - 2 * stored) // 2
        weight = np.arange(1, slots + 1) ** (self.power - 1.0)
        queries = 2 * stored + 2 * rng.choice(slots, pairs, replace=False, p=weight / weight.sum())
        tokens[queries] = keys
        targets, answers = np.zeros_like(tokens), np.zeros(length, bool)
        targets[queries], answers[queries] = values[last], True
        return tokens, targets, answers


@register("passkey")
class Passkey(Procedural):
    """A pass key in irrelevant text, in bytes (A. Mohtashami, M. Jaggi, arXiv:2305.16300, section 4.2), a
    needle-in-a-haystack test.

        ... The pass key is 48213. Keep it. ... What is the pass key? It is 48213
                                                                           [48213]

    A few sentences are repeated, with the key at a random place and the question at the end; each digit is predicted
    given the true digits before it. Chance is 1/10.

    Args:
      length: number of bytes of training and validation examples.
      test_length: number of bytes of test examples.
      digits: number of digits of the key.
      num_eval: number of examples of validation, and of test.
      seed: seed of all examples.

    Raises:
      ValueError: ``digits`` below 1, or a length without room for key and question.
    """

    vocab_size, chance = 256, 0.1
    _FILLER = b"Rain fell on the roof all night. The clock went on. Nobody came by. A dog barked far away. "

    def __init__(self, length: int = 256, test_length: int = 1024, digits: int = 5, num_eval: int = 512, seed: int = 0):
        if digits < 1:
            raise ValueError(f"digits is at least 1, not {digits}")
        self.digits = digits
        self.shortest = len(self._needle(b"0" * digits)) + len(self._question()) + digits
        super().__init__(length, test_length, num_eval, seed)

    @staticmethod
    def _needle(key: bytes) -> bytes:
        return b"The pass key is " + key + b". Keep it. "

    @staticmethod
    def _question() -> bytes:
        return b"What is the pass key? It is "

    def make(self, rng: np.random.Generator, length: int, training: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        del training
        key = bytes((48 + rng.integers(0, 10, self.digits)).tolist())
        needle, end = self._needle(key), self._question() + key
        room = length - len(needle) - len(end)
        start = int(rng.integers(len(self._FILLER)))
        hay = (self._FILLER * (room // len(self._FILLER) + 2))[start : start + room]
        place = int(rng.integers(room + 1))
        tokens = np.frombuffer(hay[:place] + needle + hay[place:] + end, np.uint8).astype(np.int32)
        targets = np.append(tokens[1:], 0)
        position = np.arange(length)
        return tokens, targets, (position >= length - self.digits - 1) & (position < length - 1)
