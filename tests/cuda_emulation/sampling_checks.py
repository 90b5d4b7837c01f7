"""The pairing that sample_mix must draw from a key, computed apart, and checks against it."""

import numpy as np
import torch

from tests.cuda_emulation.emulation import NAMESPACE

OPS = getattr(torch.ops, NAMESPACE)
PAIRINGS = ("random", "flip", "roll", "derangement")
LOW = np.uint64(0xFFFFFFFF)
SORT_KEYS, SHUFFLE = 3, 4  # second words of the counters
MOST_RANKED, ROUNDS = 4096, 8
SIZES = (0, 1, 2, 31, 32, 33, 300, MOST_RANKED, MOST_RANKED + 1)


def philox(key, *counter):
    """Philox4x32-10 of arrays of counters: four arrays of 32 bits."""
    x, y, z, w = (np.asarray(c, dtype=np.uint64) for c in np.broadcast_arrays(*counter))
    for turn in range(10):
        low, high = (
            np.uint64((k + turn * step) & 0xFFFFFFFF)
            for k, step in zip(key, (0x9E3779B9, 0xBB67AE85), strict=True)
        )
        a, b = x * np.uint64(0xD2511F53), z * np.uint64(0xCD9E8D57)
        x, y, z, w = b >> 32 ^ y ^ low, b & LOW, a >> 32 ^ w ^ high, a & LOW
    return x, y, z, w


def ranked(key, size):
    """Each row's rank, and the rows in order."""
    rows = np.arange(size + 1, dtype=np.uint64)
    x, y, z, w = philox(key, rows // 2, SORT_KEYS, 0, 0)
    high, low = np.where(rows % 2, z, x), np.where(rows % 2, w, y)
    bits = (high << 32 | low) & ~np.uint64(MOST_RANKED - 1) | rows
    order = bits[:size].argsort()
    return order.argsort(), order


def shuffled(key, size):
    """The same for a batch that is too large to be ranked."""
    width = 1 + int(size**0.5)
    height = -(-size // width)
    cells = np.arange(size, dtype=np.uint64)
    place = cells.copy()
    while len(cells):  # the rows that are not yet back in the batch
        y, x = place[cells] // width, place[cells] % width
        for turn in range(ROUNDS):
            y = (y + (philox(key, x, SHUFFLE, turn, 0)[0] * np.uint64(height) >> 32)) % height
            x = (x + (philox(key, y, SHUFFLE, turn, 1)[0] * np.uint64(width) >> 32)) % width
        place[cells] = y * width + x
        cells = cells[place[cells] >= size]
    return place, place


def expected(key, size, pairing):
    rows = np.arange(size)
    if pairing == "flip":
        return rows[::-1].copy()
    if pairing == "roll":
        return np.roll(rows, 1)
    places, order = (ranked if size <= MOST_RANKED else shuffled)(key, size)
    if pairing == "random":
        return places.astype(np.int64)
    before = np.empty(size, dtype=np.int64)
    before[order] = np.roll(order, 1)
    return before


def draw(key, size, pairing="random", per_sample=False, alpha=0.4):
    return OPS.sample_mix(torch.tensor(key), size, per_sample, pairing, alpha, None)


def check(key, size, pairing):
    perm, _ = draw(key, size, pairing)
    return torch.equal(perm, torch.from_numpy(expected(key, size, pairing)))


def run_all(emulator, dtype, sizes=SIZES):
    """True if every check passes. A draw has no dtype."""
    keys = torch.randint(2**31 - 1, (len(sizes), 2)).tolist()
    cases = zip(keys, sizes, strict=True)
    return all(check(key, size, pairing) for key, size in cases for pairing in PAIRINGS)


def run_few(emulator, dtype):
    """Fewer checks, for ThreadSanitizer, which is slow."""
    return run_all(emulator, dtype, (33, 300, MOST_RANKED + 1))
