"""Mistakes in a call of attention: dense and ragged tensors, offsets, numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

import wfkernels
from tests.bad_input.table import Arguments, Bad, Table, nested, put, wrong_tensors
from wfkernels.dispatch import ImplementationError

QUERY, KEY, VALUE = torch.zeros(2, 4, 5, 3), torch.zeros(2, 2, 7, 3), torch.zeros(2, 2, 7, 6)
TOKENS = torch.zeros(9, 4, 3)
OFFSETS = torch.tensor([0, 4, 4, 9])
SEED = torch.zeros(1, dtype=torch.int64)
NAN, INF = float("nan"), float("inf")
HUGE = 2**62
NESTED = nested()


def dense() -> Arguments:
    terms = {"bias": torch.zeros(4, 5, 7), "gate": torch.ones(5, 7)}
    return {"query": QUERY.clone(), "key": KEY.clone(), "value": VALUE.clone(), **terms}


def ragged() -> Arguments:
    tokens = {name: TOKENS.clone() for name in ("query", "key", "value")}
    terms = {"bias": torch.zeros(4, 5, 5), "gate": torch.ones(1, 6, 6)}
    return {**tokens, **terms, "offsets": OFFSETS.clone(), "max_length": 5}


def start(*rows: int, dtype: torch.dtype = torch.int64) -> Callable[[Arguments], None]:
    return put(query_start=torch.tensor(rows, dtype=dtype))


def bias(*shape: int) -> Callable[[Arguments], None]:
    return put(bias=torch.zeros(shape))


def gate(value: Any) -> Callable[[Arguments], None]:
    return put(gate=torch.full((5, 7), value))


def scalar(name: str, expected: str, *values: tuple[Any, type[Exception]], **more: Any) -> list[Bad]:
    """One entry for every wrong value of a number, or flag, or name."""
    return [Bad(f"{name} is {value!r}", put(**{name: value}, **more), error, name, expected) for value, error in values]


DENSE = (
    *wrong_tensors("query", QUERY, but="on another device"),
    *wrong_tensors("key", KEY, kinds="None, a list, integers, float8, sparse, on another device"),
    *wrong_tensors("value", VALUE, kinds="None, a numpy array, complex numbers, quantized, on another device"),
    *wrong_tensors("bias", torch.zeros(5, 7), optional=True),
    *wrong_tensors("gate", torch.ones(5, 7), optional=True, kinds="a number, bools, float8, sparse"),
    Bad("a boolean mask", put(bias=torch.ones(5, 7) > 0), TypeError, "bias", "a floating-point tensor.*gate"),
    Bad("a tuple for a table", put(bias=(torch.zeros(1, 1, 1, 1, 1), SEED)), TypeError, "bias", "a .*BucketTable"),
    Bad("another dtype", put(key=KEY.double()), ValueError, "key", "dtype torch.float32 like query"),
    Bad("half values", put(value=VALUE.half()), ValueError, "value", "dtype torch.float32 like query"),
    Bad("no head dimension", put(query=QUERY[0, 0]), ValueError, "query", r"\[\.\.\., heads, tokens, width\]"),
    Bad("a number as query", put(query=torch.zeros(())), ValueError, "query", r"\[\.\.\., heads, tokens, width\]"),
    Bad("a vector as value", put(value=torch.zeros(6)), ValueError, "value", r"\[\.\.\., heads, tokens, width\]"),
    Bad("no heads", put(query=QUERY[:, :0]), ValueError, "query", "at least one head"),
    Bad("no key heads", put(key=KEY[:, :0], value=VALUE[:, :0]), ValueError, "key", "at least one head"),
    Bad("no width", put(query=QUERY[..., :0], key=KEY[..., :0]), ValueError, "query", "at least one head of width one"),
    Bad("no width of values", put(value=VALUE[..., :0]), ValueError, "value", "at least one head of width one"),
    Bad("heads that do not divide", put(query=QUERY[:, :3]), ValueError, "query", "a multiple of the 2 heads of key"),
    Bad("more key heads", put(query=QUERY[:, :1]), ValueError, "query", "a multiple of the 2 heads of key"),
    Bad("key of another width", put(key=KEY[..., :2]), ValueError, "key", "width 3 like query"),
    Bad("heads of value", put(value=VALUE[:, :1]), ValueError, "value", "2 heads like key"),
    Bad("tokens of value", put(value=VALUE[:, :, :6]), ValueError, "value", "7 tokens like key"),
    Bad("batch of key", put(key=KEY[:1]), ValueError, "key", r"leading dimensions \[2\] like query"),
    Bad("value without batch", put(value=VALUE[0]), ValueError, "value", r"leading dimensions \[2\] like query"),
    Bad("one dimension too many", put(key=KEY[None]), ValueError, "key", r"leading dimensions \[2\] like query"),
    Bad("bias for fewer keys", bias(4, 5, 6), ValueError, "bias", "a shape that broadcasts"),
    Bad("bias transposed", bias(7, 5), ValueError, "bias", "a shape that broadcasts"),
    Bad("bias of key heads", bias(2, 5, 7), ValueError, "bias", "a shape that broadcasts"),
    Bad("bias without entries", bias(0, 7), ValueError, "bias", "a shape that broadcasts"),
    Bad("bias with too many dimensions", bias(1, 2, 4, 5, 7), ValueError, "bias", "a shape that broadcasts"),
    Bad("gate of another batch", put(gate=torch.ones(3, 1, 5, 7)), ValueError, "gate", "a shape that broadcasts"),
    Bad("causal bias for more keys", put(bias=torch.zeros(5, 8), is_causal=True), ValueError, "bias", "a shape that"),
    Bad("gate above one", gate(1.5), ValueError, "gate", r"values in \[0, 1\]"),
    Bad("gate below zero", gate(-1e-3), ValueError, "gate", r"values in \[0, 1\]"),
    Bad("gate of infinity", gate(INF), ValueError, "gate", r"values in \[0, 1\]"),
    Bad("a mask of -inf as gate", gate(-INF), ValueError, "gate", r"values in \[0, 1\]"),
    Bad("key_offsets alone", put(key_offsets=OFFSETS), ValueError, "key_offsets", "None in a dense call"),
    Bad("max_length alone", put(max_length=5), ValueError, "max_length", "None in a dense call"),
    Bad("query_start per query", start(0, 0, 0), ValueError, "query_start", r"\[1\] or \[2\] entries"),
    Bad("no query_start", start(), ValueError, "query_start", r"\[1\] or \[2\] entries"),
    Bad("query_start below zero", start(-1), ValueError, "query_start", "rows from 0 on"),
    Bad("query_start that overflows", start(2**63 - 1), ValueError, "query_start", "rows below"),
    Bad("query_start is a number", put(query_start=3), TypeError, "query_start", "a torch.Tensor or None"),
    Bad("query_start of floats", put(query_start=torch.zeros(2)), ValueError, "query_start", "one of torch.int64"),
    Bad("query_start of bools", put(query_start=torch.ones(2) > 0), ValueError, "query_start", "one of torch.int64"),
    Bad("query_start 2-D", put(query_start=OFFSETS[None]), ValueError, "query_start", "one dimension"),
    Bad("query_start 0-D", put(query_start=torch.tensor(1)), ValueError, "query_start", "one dimension"),
    Bad(
        "query_start on another device", put(query_start=SEED.to("meta")), ValueError, "query_start", "a tensor on cpu"
    ),
    *scalar("is_causal", "bool", *((v, TypeError) for v in (1, 0, None, "yes", torch.tensor(True)))),
    *scalar("scale", "float", *((v, TypeError) for v in ("big", True, 1j, [1.0], torch.tensor(0.5)))),
    *scalar("scale", "a finite number", (NAN, ValueError), (INF, ValueError), (-INF, ValueError)),
    *scalar("dropout_p", "float", *((v, TypeError) for v in (None, "0.1", True, False, torch.tensor(0.1)))),
    *scalar("dropout_p", r"a probability in \[0, 1\)", *((v, ValueError) for v in (1, 1.5, -0.1, NAN, INF))),
    *scalar("seed", "an int64 tensor", *((v, TypeError) for v in (3, SEED.float(), SEED.int())), dropout_p=0.1),
    *scalar(
        "seed", "an int64 tensor of one element", *((v, TypeError) for v in (OFFSETS, SEED[:0], NESTED)), dropout_p=0.1
    ),
    *scalar("seed", "a tensor on cpu", (SEED.to("meta"), ValueError), dropout_p=0.1),
    *scalar("seed", "an int64 tensor", (True, TypeError), ([1], TypeError)),  # without dropout as well
    *scalar("impl", "str", *((v, TypeError) for v in (None, 1, b"auto", ["auto"]))),
    Bad("unknown impl", put(impl="fastest"), ImplementationError, "impl='fastest' cannot run here", ""),
    Bad("impl in capitals", put(impl="Reference"), ImplementationError, "impl='Reference' cannot run here", ""),
    Bad("no impl", put(impl=""), ImplementationError, "impl='' cannot run here", ""),
)


def offsets(*values: int, **more: Any) -> Callable[[Arguments], None]:
    return put(offsets=torch.tensor(values), **more)


def keys(*values: int) -> Callable[[Arguments], None]:
    return put(key_offsets=torch.tensor(values))


ORDER = "to start at 0, never to fall and to end at 9, the number of tokens"
RAGGED = (
    Bad("dense tensors", put(query=QUERY), ValueError, "query", r"\[tokens, heads, width\] because offsets are given"),
    Bad("dense keys", put(key=KEY), ValueError, "key", r"\[tokens, heads, width\] because offsets are given"),
    Bad("offsets in a list", put(offsets=[0, 4, 4, 9]), TypeError, "offsets", "a torch.Tensor or None"),
    Bad("offsets in a tuple", put(offsets=(0, 9)), TypeError, "offsets", "a torch.Tensor or None"),
    Bad("floats as offsets", put(offsets=OFFSETS.float()), ValueError, "offsets", "one of torch.int64, torch.int32"),
    Bad("bools as offsets", put(offsets=OFFSETS > 0), ValueError, "offsets", "one of torch.int64, torch.int32"),
    Bad("short offsets", put(offsets=OFFSETS.short()), ValueError, "offsets", "one of torch.int64, torch.int32"),
    Bad("bytes as offsets", put(offsets=OFFSETS.byte()), ValueError, "offsets", "one of torch.int64, torch.int32"),
    Bad("complex offsets", put(offsets=OFFSETS.cfloat()), ValueError, "offsets", "one of torch.int64, torch.int32"),
    Bad("nested offsets", put(offsets=NESTED.long()), TypeError, "offsets", "a dense tensor"),
    Bad("sparse offsets", put(offsets=OFFSETS.to_sparse()), TypeError, "offsets", "a dense tensor"),
    Bad("offsets 2-D", put(offsets=OFFSETS[None]), ValueError, "offsets", "one dimension"),
    Bad("offsets 0-D", put(offsets=torch.tensor(9)), ValueError, "offsets", "one dimension"),
    Bad("no offsets", offsets(), ValueError, "offsets", "one of torch.int64, torch.int32"),
    Bad("empty offsets", put(offsets=OFFSETS[:0]), ValueError, "offsets", r"\[N \+ 1\] entries"),
    Bad("offsets from one", offsets(1, 4, 9), ValueError, "offsets", ORDER),
    Bad("offsets that end early", offsets(0, 4, 8), ValueError, "offsets", ORDER),
    Bad("offsets that end late", offsets(0, 4, 10), ValueError, "offsets", ORDER),
    Bad("offsets that fall", offsets(0, 5, 4, 9), ValueError, "offsets", ORDER),
    Bad("offsets beyond and back", offsets(0, 100, 9), ValueError, "offsets", ORDER),
    Bad("negative offsets", offsets(0, -4, 9), ValueError, "offsets", ORDER),
    Bad("huge offsets", offsets(0, HUGE, 9), ValueError, "offsets", ORDER),
    Bad("one offset", offsets(0), ValueError, "offsets", ORDER),
    Bad("lengths for offsets", offsets(4, 0, 5), ValueError, "offsets", ORDER),
    Bad("offsets on another device", put(offsets=OFFSETS.to("meta")), ValueError, "offsets", "a tensor on cpu"),
    Bad("fewer keys", put(key=TOKENS[:8], value=TOKENS[:8]), ValueError, "key", "9 tokens like query.*key_offsets"),
    Bad("fewer key_offsets", keys(0, 4, 9), ValueError, "key_offsets", r"\[4\] entries for 3 sequences"),
    Bad("more key_offsets", keys(0, 1, 2, 3, 9), ValueError, "key_offsets", r"\[4\] entries for 3 sequences"),
    Bad("key_offsets that fall", keys(0, 9, 4, 9), ValueError, "key_offsets", ORDER),
    Bad("key_offsets too long", keys(0, 8, 8, 18), ValueError, "key_offsets", ORDER),
    Bad("key_offsets in a list", put(key_offsets=[0, 9]), TypeError, "key_offsets", "a torch.Tensor or None"),
    Bad("key_offsets of floats", put(key_offsets=OFFSETS.double()), ValueError, "key_offsets", "one of torch.int64"),
    Bad(
        "query_start per offset", put(query_start=OFFSETS), ValueError, "query_start", r"\[3\] entries for 3 sequences"
    ),
    Bad("query_start of one", start(0), ValueError, "query_start", r"\[3\] entries for 3 sequences"),
    Bad("query_start below zero", start(0, 0, -9), ValueError, "query_start", "rows from 0 on"),
    Bad("query_start beyond max_length", start(0, 0, 1), ValueError, "max_length", "at least 6"),
    Bad("huge query_start", start(0, 0, HUGE), ValueError, "query_start", f"rows below {HUGE}"),
    Bad("query_start at the end of int64", start(0, 0, 2**63 - 1), ValueError, "query_start", "rows below"),
    Bad(
        "query_start at the end of int32",
        put(offsets=OFFSETS.int(), query_start=torch.tensor([2**31 - 1, 0, 0], dtype=torch.int32)),
        ValueError,
        "max_length",
        f"at least {2**31 + 3}",
    ),
    Bad("max_length too small", put(max_length=4), ValueError, "max_length", "at least 5, the longest sequence"),
    Bad("max_length of zero", put(max_length=0), ValueError, "max_length", "at least 5, the longest sequence"),
    Bad("negative max_length", put(max_length=-1), ValueError, "max_length", "at least 0"),
    *scalar("max_length", f"less than {HUGE}", (HUGE, ValueError), (2**70, ValueError)),
    *scalar("max_length", "int", *((v, TypeError) for v in (5.0, "5", True, torch.tensor(5), [5]))),
    Bad("bias too small", bias(4, 4, 5), ValueError, "bias", r"\[4 or 1, M, M\] with M at least 5"),
    Bad("bias without heads", bias(5, 5), ValueError, "bias", r"\[4 or 1, M, M\] with M at least 5"),
    Bad("bias of other heads", bias(2, 5, 5), ValueError, "bias", r"\[4 or 1, M, M\] with M at least 5"),
    Bad("bias per sequence", bias(3, 4, 5, 5), ValueError, "bias", r"\[4 or 1, M, M\] with M at least 5"),
    Bad("bias that broadcasts", bias(1, 1, 1), ValueError, "bias", r"\[4 or 1, M, M\] with M at least 5"),
    Bad("gate below max_length", put(max_length=7), ValueError, "bias", r"\[4 or 1, M, M\] with M at least 7"),
    Bad("gate out of range", put(gate=torch.full((1, 5, 5), 2.0)), ValueError, "gate", r"values in \[0, 1\]"),
    Bad("return_lse is 1", put(return_lse=1), TypeError, "return_lse", "bool"),
)


def without_max_length(call: Arguments) -> None:
    """Offsets of whose values nothing is known."""
    call.update({name: t.to("meta") for name, t in call.items() if isinstance(t, torch.Tensor)})
    call["max_length"] = None


UNREAD = Bad("no max_length for offsets on a device", without_max_length, ValueError, "max_length", "an int because")
TABLES = (
    Table("attention", wfkernels.attention, dense, DENSE),
    Table("attention", wfkernels.attention, ragged, (*RAGGED, UNREAD)),
)
