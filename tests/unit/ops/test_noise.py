"""The shared noise: published Philox vectors, a slow twin in plain Python, slices, and the Gumbel distribution."""

import math

import numpy as np
import pytest
import torch

from medusa_dist.ops import noise
from medusa_dist.ops.noise import NoiseColumns, gumbel, philox
from medusa_dist.ops.tp_group import TPGroup

pytestmark = pytest.mark.usefixtures("one_thread")
CPU = torch.device("cpu")
V = 97
KNOWN_ANSWERS = (  # Random123's kat_vectors, philox 4x32-10: counter, key, output
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
)


def words(text: str) -> list[int]:
    return [int(word, 16) for word in text.split()]


def slow_philox(counter: list[int], key: list[int]) -> list[int]:
    """Philox4x32-10 on Python's integers."""
    c, k = list(counter), list(key)
    for _ in range(10):
        high0, low0 = divmod(0xD2511F53 * c[0], 2**32)
        high1, low1 = divmod(0xCD9E8D57 * c[2], 2**32)
        c = [high1 ^ c[1] ^ k[0], low1, high0 ^ c[3] ^ k[1], low0]
        k = [(k[0] + 0x9E3779B9) % 2**32, (k[1] + 0xBB67AE85) % 2**32]
    return c


def slow_gumbel(seed: int, position: int, token: int) -> float:
    """The definition, in float64."""
    counter = [token // 4, position % 2**32, position // 2**32, 0]
    h = slow_philox(counter, [seed % 2**32, seed % 2**64 // 2**32])[token % 4]
    return -math.log(-math.log1p(-(h + 0.5) * 2.0**-32))


def rows(seeds: list[int], positions: list[int], columns: NoiseColumns) -> torch.Tensor:
    return gumbel(torch.tensor(seeds), torch.tensor(positions), columns)


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN_ANSWERS)
def test_philox_gives_the_published_vectors(counter: str, key: str, expected: str) -> None:
    got = philox(*(tuple(torch.tensor([word]) for word in words(text)) for text in (counter, key)))
    assert [int(word) for word in got] == words(expected) == slow_philox(words(counter), words(key))


@pytest.mark.parametrize("seed", [0, 1, 2**63 - 1, -(2**63), -1, 0x0123456789ABCDEF])
def test_noise_equals_the_plain_python_definition(seed: int) -> None:
    positions = [0, 1, 5, 2**31, 2**32 - 1, 2**32 + 3, 2**45]
    got = rows([seed] * len(positions), positions, NoiseColumns.of_range(0, V, CPU))
    expected = torch.tensor([[slow_gumbel(seed, p, v) for v in range(V)] for p in positions], dtype=torch.float64)
    # float32 holds x to 2^-24 of itself; where x is near 1 that moves the noise by dG/dx = 1 / ((1-x) * -log(1-x)).
    rest = torch.exp(-torch.exp(-expected))  # 1 - x
    tolerance = 2e-6 * (1 + expected.abs()) + 2.0**-24 * (1 - rest) / (rest * -torch.log(rest))
    assert ((got.double() - expected).abs() <= tolerance).all()


def test_noise_differs_for_every_seed_position_and_token() -> None:
    columns = NoiseColumns.of_range(0, V, CPU)
    seen = rows([7, -7, 8, 7, 7, 7 + 2**40], [3, 3, 3, 4, 3 + 2**32, 3], columns)
    values = seen.flatten().tolist()
    assert len(set(values)) == len(values)


@pytest.mark.parametrize(("start", "stop"), [(0, V), (0, 1), (1, 2), (3, 5), (4, 8), (13, 90), (96, 97), (50, 50)])
def test_noise_of_a_token_range_is_a_slice_of_the_whole_row(start: int, stop: int) -> None:
    seeds, positions = [5, -9, 5], [0, 17, 2**33]
    whole = rows(seeds, positions, NoiseColumns.of_range(0, V, CPU))
    assert torch.equal(rows(seeds, positions, NoiseColumns.of_range(start, stop, CPU)), whole[:, start:stop])


@pytest.mark.parametrize("world", [1, 2, 3, 5])
def test_noise_of_vocabulary_shards_joins_to_the_whole_row(world: int) -> None:
    seeds, positions = [11, 12], [40, 41]
    shards = [TPGroup(rank, world).vocab_shard(V) for rank in range(world)]
    parts = [rows(seeds, positions, NoiseColumns.of_range(start, stop, CPU)) for start, stop, _ in shards]
    assert torch.equal(torch.cat(parts, dim=1), rows(seeds, positions, NoiseColumns.of_range(0, V, CPU)))


@pytest.mark.parametrize("ids", [[0], [96], [0, 1, 2, 3, 4], [5, 9, 10, 63, 96], [90, 3, 3, 17]])
def test_noise_of_token_ids_equals_those_columns_of_the_whole_row(ids: list[int]) -> None:
    seeds, positions = [1, 2, 3], [9, 8, 7]
    whole = rows(seeds, positions, NoiseColumns.of_range(0, V, CPU))
    assert torch.equal(rows(seeds, positions, NoiseColumns.of_ids(torch.tensor(ids))), whole[:, ids])


def test_noise_rows_do_not_depend_on_how_many_are_made_at_once() -> None:
    seeds, positions = list(range(40)), list(range(100, 140))  # more than one portion
    assert len(seeds) > 2 * noise._ROWS_AT_ONCE
    columns = NoiseColumns.of_range(0, V, CPU)
    together = rows(seeds, positions, columns)
    alone = torch.cat([rows([s], [p], columns) for s, p in zip(seeds, positions, strict=True)])
    assert torch.equal(together, alone)


@pytest.mark.parametrize("num_blocks", [1, 63, 64, 65, 300])
def test_compiled_philox_words_equal_the_oracles(num_blocks: int) -> None:
    seeds = torch.tensor([0, -1, 2**63 - 1, -(2**63), 123456789012345])
    positions = torch.tensor([0, 1, 2**31, 2**32 + 5, 2**40])
    blocks = torch.arange(num_blocks) + 2**30 - 7
    assert torch.equal(noise._words_compiled(seeds, positions, blocks), noise._words(seeds, positions, blocks))


def test_noise_of_no_rows_is_empty() -> None:
    empty = torch.zeros(0, dtype=torch.int64)
    for columns in (NoiseColumns.of_range(3, 20, CPU), NoiseColumns.of_ids(torch.arange(17))):
        assert gumbel(empty, empty, columns).shape == (0, 17)


@pytest.mark.parametrize(
    ("h", "expected"), [(0, 22.874), (1, 21.775), (2**31, 0.3665), (2**32 - 2**8, -2.81), (2**32 - 1, -2.81)]
)
def test_known_words_give_known_noise(monkeypatch: pytest.MonkeyPatch, h: int, expected: float) -> None:
    assert float(_of_word(monkeypatch, h)) == pytest.approx(expected, abs=0.01)


@pytest.mark.parametrize("h", [0, 1, 2**31, 2**32 - 2**9, 2**32 - 2**8, 2**32 - 2**7, 2**32 - 2, 2**32 - 1])
def test_noise_is_finite_at_extreme_words(monkeypatch: pytest.MonkeyPatch, h: int) -> None:
    value = _of_word(monkeypatch, h)
    assert torch.isfinite(value).all(), f"h = {h} makes {value}"


def _of_word(monkeypatch: pytest.MonkeyPatch, h: int) -> torch.Tensor:
    """Noise made from one given 32-bit word."""
    monkeypatch.setattr(noise, "philox_words", lambda seeds, positions, blocks, words: words.fill(np.float32(h)))
    return rows([0], [0], NoiseColumns.of_range(0, 1, CPU))


@pytest.mark.parametrize("seed", [1, -123456789, 2**62])
def test_noise_follows_the_gumbel_distribution(seed: int) -> None:
    """Kolmogorov-Smirnov distance to exp(-exp(-g)), along tokens and along positions."""
    along_tokens = rows([seed], [12], NoiseColumns.of_range(0, 20011, CPU))
    along_positions = rows([seed] * 20011, list(range(20011)), NoiseColumns.of_range(6, 7, CPU))
    for sample in (along_tokens, along_positions):
        ordered = sample.flatten().double().sort().values
        cdf = torch.exp(-torch.exp(-ordered))
        count = ordered.numel()
        steps = torch.arange(count + 1, dtype=torch.float64) / count
        distance = max(float((cdf - steps[:-1]).abs().max()), float((cdf - steps[1:]).abs().max()))
        assert distance * math.sqrt(count) < 1.63  # 1 % level; seeds are fixed


def test_noise_of_neighbouring_tokens_and_positions_is_uncorrelated() -> None:
    values = rows([3] * 512, list(range(512)), NoiseColumns.of_range(0, 64, CPU)).double()
    values = (values - values.mean()) / values.std()
    for a, b in ((values[1:], values[:-1]), (values[:, 1:], values[:, :-1])):
        assert abs(float((a * b).mean())) < 4 / math.sqrt(a.numel())
