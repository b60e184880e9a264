"""The tile sizes of the attention kernels, one table per family of GPUs.

Chosen from shared memory and registers of the compiled code (tests/attention/test_triton_aot.py): no spills up to a
width of 128. Lengths are in no key.
"""

from __future__ import annotations

from typing import NamedTuple


class Config(NamedTuple):
    """How one kernel is compiled."""

    block_m: int  # queries of a tile
    block_n: int  # keys of a tile
    warps: int
    stages: int


class Configs(NamedTuple):
    """One config per kernel."""

    forward: Config
    heavy_forward: Config  # see `configs`
    queries: Config  # gradient of queries
    keys: Config  # gradients of keys and values
    terms: Config  # gradient of a dense bias or gate
    tables: Config  # gradient of a table


class Kind(NamedTuple):
    """What a config depends on."""

    width: int  # the wider one of D and Dv, at most
    bits: int  # of an element of query, key and value


def _of(*each: tuple[int, int, int]) -> Configs:
    """Return configs of (block_m, block_n, stages); with 8 warps the sums of a tile fit the registers everywhere."""
    return Configs(*(Config(m, n, 8, stages) for m, n, stages in each))


# fmt: off
HOPPER = {  # sm_90, sm_100: 227 KB of shared memory
    #                  forward        heavy forward  queries        keys           terms          tables
    Kind(64, 16):  _of((128, 64, 3),  (64, 64, 3),   (128, 64, 2),  (64, 128, 2),  (64, 64, 2),  (64, 32, 2)),
    Kind(128, 16): _of((128, 64, 3),  (64, 32, 2),   (64, 64, 2),   (32, 64, 2),   (64, 64, 2),  (64, 16, 1)),
    Kind(256, 16): _of((64, 64, 2),   (64, 32, 2),   (64, 32, 2),   (32, 64, 2),   (64, 32, 1),  (64, 32, 1)),
    Kind(64, 32):  _of((64, 32, 2),   (32, 32, 2),   (32, 32, 2),   (32, 32, 2),   (32, 32, 2),  (32, 32, 2)),
    Kind(128, 32): _of((32, 32, 2),   (32, 16, 2),   (32, 32, 1),   (32, 32, 1),   (32, 32, 1),  (32, 32, 1)),
    Kind(256, 32): _of((32, 16, 1),   (16, 16, 1),   (16, 16, 1),   (16, 16, 1),   (16, 16, 1),  (16, 16, 1)),
}
AMPERE = {  # sm_80: 163 KB
    #                  forward        heavy forward  queries        keys           terms          tables
    Kind(64, 16):  _of((128, 64, 2),  (64, 32, 2),   (64, 32, 2),   (32, 64, 2),   (64, 32, 2),  (32, 32, 1)),
    Kind(128, 16): _of((128, 32, 2),  (64, 32, 2),   (64, 32, 2),   (32, 64, 2),   (32, 32, 2),  (32, 32, 1)),
    Kind(256, 16): _of((64, 32, 1),   (32, 32, 1),   (32, 32, 1),   (32, 32, 1),   (32, 32, 1),  (32, 32, 1)),
    Kind(64, 32):  _of((64, 32, 2),   (32, 32, 2),   (32, 32, 2),   (32, 32, 2),   (32, 32, 2),  (32, 32, 2)),
    Kind(128, 32): _of((32, 32, 1),   (32, 16, 1),   (32, 32, 1),   (32, 32, 1),   (32, 32, 1),  (32, 32, 1)),
    Kind(256, 32): _of((32, 16, 1),   (16, 16, 1),   (16, 16, 1),   (16, 16, 1),   (16, 16, 1),  (16, 16, 1)),
}
SMALL = {  # sm_86, sm_89, sm_120: 99 KB
    #                  forward        heavy forward  queries        keys           terms          tables
    Kind(64, 16):  _of((128, 32, 2),  (64, 32, 2),   (64, 32, 2),   (32, 64, 2),   (64, 32, 2),  (32, 32, 1)),
    Kind(128, 16): _of((128, 32, 2),  (64, 32, 2),   (64, 32, 1),   (32, 64, 1),   (32, 32, 1),  (32, 32, 1)),
    Kind(256, 16): _of((32, 32, 1),   (32, 16, 1),   (32, 16, 1),   (16, 32, 1),   (32, 16, 1),  (32, 16, 1)),
    Kind(64, 32):  _of((32, 32, 2),   (32, 32, 1),   (32, 32, 1),   (32, 32, 1),   (32, 32, 1),  (32, 32, 1)),
    Kind(128, 32): _of((32, 32, 1),   (16, 32, 1),   (16, 32, 1),   (32, 16, 1),   (16, 32, 1),  (16, 32, 1)),
    Kind(256, 32): _of((16, 16, 1),   (16, 16, 1),   (16, 16, 1),   (16, 16, 1),   (16, 16, 1),  (16, 16, 1)),
}
# fmt: on

FAMILIES = {80: AMPERE, 86: SMALL, 87: AMPERE, 89: SMALL, 90: HOPPER, 100: HOPPER, 103: HOPPER, 120: SMALL}
SHARED_MEMORY = {80: 163, 86: 99, 87: 163, 89: 99, 90: 227, 100: 227, 103: 227, 120: 99}  # KB that a program may take


def configs(capability: int, width: int, bits: int, heavy: bool) -> Configs:
    """Return the configs for a compute capability such as 90. One that is not listed runs with the smallest tiles.

    heavy: is there dropout, or a table as bias or gate? Their integers take registers, so tiles are then smaller.
    """
    table = FAMILIES.get(capability, SMALL)
    chosen = table[Kind(next(w for w in (64, 128, 256) if width <= w), bits)]
    if not heavy:
        return chosen
    queries, keys = chosen.queries, chosen.keys
    return chosen._replace(
        forward=chosen.heavy_forward,
        queries=queries._replace(block_n=max(16, queries.block_n // 2)),
        keys=keys._replace(block_m=max(16, keys.block_m // 2)),
    )
