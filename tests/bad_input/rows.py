"""Mistakes in calls of pack and unpack, and in layouts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy
import torch

import wfkernels
from tests.bad_input.table import Arguments, Bad, Table, put, wrong_tensors
from wfkernels import RowLayout
from wfkernels.dispatch import ImplementationError
from wfkernels.layout import Layer, Parameter, TokenLayout
from wfkernels.rows.api import pack_student

WEIGHT, BIAS = Parameter("fc.weight", (2, 3), 0, 3), Parameter("fc.bias", (2,), 3, 1)
TABLE = Parameter("table", (1, 4, 5), 0, 5)
LAYOUT = RowLayout(
    (Layer("fc", "linear", 2, (WEIGHT, BIAS)), Layer("table", "table", 4, (TABLE,))), tied=(("head", "table"),)
)
NAMES = ("fc.weight", "fc.bias", "table")
FLOAT8 = torch.float8_e4m3fn


def tensors() -> list[torch.Tensor]:
    return [torch.zeros(p.shape) for p in LAYOUT.parameters]


def pack() -> Arguments:
    return {"teachers": [tensors(), tensors()], "layout": LAYOUT}


def unpack() -> Arguments:
    return {"buffer": torch.zeros(2, LAYOUT.numel), "layout": LAYOUT}


def student() -> Arguments:
    return {"state": dict(zip(NAMES, tensors(), strict=True)), "layout": LAYOUT}


def tensor(value: Any, teacher: int = 1, place: int = 0) -> Callable[[Arguments], None]:
    """Put a value in place of one tensor of one teacher."""

    def change(call: Arguments) -> None:
        call["teachers"][teacher][place] = value

    return change


def teacher(value: Any) -> Callable[[Arguments], None]:
    return lambda call: call["teachers"].__setitem__(1, value)


def values(name: str, expected: str, error: type[Exception], *given: Any, **more: Any) -> list[Bad]:
    return [Bad(f"{name} is {value!r}"[:60], put(**{name: value}, **more), error, name, expected) for value in given]


SECOND = "teachers[1] fc.weight"
PACK = (
    *(
        replace(bad, argument=SECOND)
        for bad in wrong_tensors("a tensor", torch.zeros(2, 3), tensor, but="float8, on another device")
    ),
    Bad("another device", tensor(torch.zeros(2, 3, device="meta")), ValueError, SECOND, "a tensor on cpu like the"),
    Bad("float4", tensor(torch.zeros(2, 3).byte().view(torch.float4_e2m1fn_x2)), TypeError, SECOND, "floating-point"),
    Bad("transposed", tensor(torch.zeros(3, 2)), ValueError, SECOND, r"shape \[2, 3\]"),
    Bad("flat", tensor(torch.zeros(6)), ValueError, SECOND, r"shape \[2, 3\]"),
    Bad("a row too many", tensor(torch.zeros(3, 3)), ValueError, SECOND, r"shape \[2, 3\]"),
    Bad("a 0-D bias", tensor(torch.zeros(()), 0, 1), ValueError, "teachers[0] fc.bias", r"shape \[2\]"),
    Bad("no leading one", tensor(torch.zeros(4, 5), 0, 2), ValueError, "teachers[0] table", r"shape \[1, 4, 5\]"),
    *values("teachers", "a list or tuple, one entry per teacher", TypeError, None, 3, "vgg", torch.zeros(2, 3), {}),
    *values("teachers", "a list or tuple, one entry per teacher", TypeError, iter(()), numpy.zeros((2, 3))),
    *values("teachers", "at least one teacher", ValueError, [], ()),
    *(
        Bad(f"a teacher is {type(v).__name__}", teacher(v), TypeError, "teachers[1]", "a list or tuple of tensors")
        for v in (dict(zip(NAMES, tensors(), strict=True)), None, torch.zeros(2, 3), "vgg.pt", iter(tensors()), 3)
    ),
    Bad("a tensor too few", teacher(tensors()[:2]), ValueError, "teachers[1]", "3 tensors, one per parameter"),
    Bad("a tensor too many", teacher(tensors() * 2), ValueError, "teachers[1]", "3 tensors, one per parameter"),
    Bad("no tensor", teacher([]), ValueError, "teachers[1]", "3 tensors, one per parameter"),
    *values("layout", "a RowLayout", TypeError, None, "vgg", LAYOUT.tokens([2]), LAYOUT.layers),
    Bad("an empty layout", put(layout=RowLayout(())), ValueError, "layout", "at least one parameter"),
    *values(
        "dtype",
        "a real floating-point dtype",
        TypeError,
        torch.int32,
        torch.bool,
        torch.complex64,
        "float32",
        numpy.zeros(3),
    ),
    *values("dtype", "a real floating-point dtype", TypeError, float, 32, torch.float4_e2m1fn_x2),
    Bad("float8 beside float32", tensor(torch.zeros(2, 3).to(FLOAT8)), ValueError, "dtype", "one, because .*float8"),
    *values("impl", "str", TypeError, None, 3, b"cpp"),
    Bad("unknown impl", put(impl="fast"), ImplementationError, "impl='fast' cannot run here", "", "rows_pack"),
    Bad("an impl that cannot", put(impl="cuda"), ImplementationError, "impl='cuda' cannot run here", "", "rows_pack"),
)
UNPACK = (
    *wrong_tensors("buffer", torch.zeros(LAYOUT.numel), but="float8, on another device"),
    Bad(
        "too short", put(buffer=torch.zeros(LAYOUT.numel - 8)), ValueError, "buffer", rf"shape \[\.\.\., {LAYOUT.numel}"
    ),
    Bad("too long", put(buffer=torch.zeros(2, LAYOUT.numel + 1)), ValueError, "buffer", r"shape \[\.\.\., "),
    Bad("transposed", put(buffer=torch.zeros(LAYOUT.numel, 2)), ValueError, "buffer", r"shape \[\.\.\., "),
    Bad("a number", put(buffer=torch.zeros(())), ValueError, "buffer", r"shape \[\.\.\., "),
    Bad("the rows buffer", put(buffer=torch.zeros(LAYOUT.row_numel)), ValueError, "buffer", r"shape \[\.\.\., "),
    *values("layout", "a RowLayout", TypeError, None, "vgg", LAYOUT.tokens([2]), {"fc.weight": (2, 3)}),
)
STUDENT = (
    *values("state", "a mapping", TypeError, None, tensors(), "student.pt"),
    *values("state", "an entry for fc.weight", ValueError, {}),
    *values("layout", "a RowLayout", TypeError, None, LAYOUT.tokens([1])),
)


def row_layout() -> Arguments:
    return {"layers": LAYOUT.layers, "tied": LAYOUT.tied}


def layer(**changes: Any) -> Callable[[Arguments], None]:
    return lambda call: call.update(layers=(replace(call["layers"][0], **changes), *call["layers"][1:]))


def parameter(place: int, **changes: Any) -> Callable[[Arguments], None]:
    parts = [WEIGHT, BIAS]
    parts[place] = replace(parts[place], **changes)
    return layer(parameters=tuple(parts))


FIRST, SECOND_PART = "layers[0].parameters[0]", "layers[0].parameters[1]"
ROW_LAYOUT = (
    *values("layers", "a tuple of Layer", TypeError, None, list(LAYOUT.layers), LAYOUT.layers[0], "fc"),
    Bad("a layer is a name", put(layers=("fc",)), TypeError, "layers[0]", "a Layer"),
    Bad("a layer twice", lambda call: call.update(layers=call["layers"] * 2), ValueError, "layers", "parameter once"),
    Bad("a name is None", layer(name=None), TypeError, "layers[0].name", "str"),
    Bad("a kind is None", layer(kind=None), TypeError, "layers[0].kind", "str"),
    *(Bad(f"rows are {n!r}", layer(rows=n), TypeError, "layers[0].rows", "int") for n in (2.0, "2", None, True)),
    Bad("negative rows", layer(rows=-2), ValueError, "layers[0].rows", "zero or more"),
    Bad("other rows", layer(rows=3), ValueError, f"{FIRST}.shape", "3 rows of 3 columns"),
    Bad("no parameters", layer(parameters=()), ValueError, "layers[0].parameters", "at least one"),
    Bad("a list of parameters", layer(parameters=[WEIGHT, BIAS]), TypeError, "layers[0].parameters", "a tuple of"),
    Bad("a parameter is a shape", layer(parameters=((2, 3),)), TypeError, FIRST, "a Parameter"),
    Bad("a list as shape", parameter(0, shape=[2, 3]), TypeError, f"{FIRST}.shape", "a tuple"),
    Bad("a float in a shape", parameter(0, shape=(2.0, 3)), TypeError, f"{FIRST}.shape", "int"),
    Bad("a negative size", parameter(0, shape=(-2, -3)), ValueError, f"{FIRST}.shape", "zero or more"),
    Bad("another shape", parameter(0, shape=(2, 4)), ValueError, f"{FIRST}.shape", "2 rows of 3 columns"),
    Bad("another width", parameter(1, width=2), ValueError, f"{SECOND_PART}.shape", "2 rows of 2 columns"),
    Bad("a negative width", parameter(1, width=-1), ValueError, f"{SECOND_PART}.width", "zero or more"),
    Bad("a gap", parameter(1, start=4), ValueError, f"{SECOND_PART}.start", "3, where the columns before it end"),
    Bad("an overlap", parameter(1, start=0), ValueError, f"{SECOND_PART}.start", "3, where the columns before it end"),
    Bad("a start of text", parameter(1, start="3"), TypeError, f"{SECOND_PART}.start", "int"),
    Bad("a name twice", parameter(1, name="fc.weight"), ValueError, "layers", "every parameter once"),
    Bad("no name", parameter(0, name=None), TypeError, f"{FIRST}.name", "str"),
    *values("tied", "a tuple", TypeError, None, [("head", "table")], {"head": "table"}),
    Bad("a tie without its holder", put(tied=("head",)), TypeError, "tied[0]", "a tuple"),
    Bad("three names in a tie", put(tied=(("a", "b", "table"),)), ValueError, "tied[0]", r"\(name, name that holds"),
    *values("tied", "str", TypeError, (("head", 3),), ((None, "table"),)),
    *values("tied", "'head' to name a parameter of the layers", ValueError, (("head", "nobody"),)),
    Bad("a tie to a tie", put(tied=(("a", "table"), ("b", "a"))), ValueError, "tied", "'b' to name a parameter"),
    *values("tied", "a name of its own", ValueError, (("table", "table"),), (("a", "table"), ("a", "fc.bias"))),
)
TEACHERS = (
    *values("teachers", "a list or tuple of integers", TypeError, None, 3, "23", torch.tensor([2, 3]), {2: 3}),
    *values("teachers", "a list or tuple of integers", TypeError, (2.0,), ("2",), (True,), (None,), ((2,),)),
    *values("teachers", "at least one teacher in every group", ValueError, (), (2, 0), (-1,)),
    *values("cross", "int", TypeError, None, 1.0, "1", True),
    *values("cross", "zero or more", ValueError, -1),
)
# A call takes a list of teachers, the class itself only what can be hashed.
TOKEN_LAYOUT = tuple(bad for bad in TEACHERS if bad.argument == "cross" or bad.name.startswith("teachers is (")) + (
    *values("layout", "a RowLayout", TypeError, None, LAYOUT.layers),
    *values("teachers", "a tuple", TypeError, [2, 3], None),
)
SELECT = (
    *values("indices", "integers", TypeError, ["fc"], [0.0], [True], None, 0, torch.tensor([0]), iter([0])),
    *values("indices", "some from 0 to 1", ValueError, [2], [-1], [0, 99]),
)
ROWS, COLUMNS = LAYOUT.row_numel, LAYOUT.column_numel
ROW_BLOCKS = (
    *values("rows", "a torch.Tensor", TypeError, None, [0.0] * ROWS),
    *values("rows", "a dense tensor", TypeError, torch.zeros(2 * ROWS).to_sparse()),
    *values("copies", "int", TypeError, None, 2.0, True, torch.tensor(2)),
    *values("rows", rf"shape \[{2 * ROWS}\]", ValueError, torch.zeros(ROWS), torch.zeros(2, ROWS), torch.zeros(())),
)
COLUMN_BLOCKS = (
    *values("columns", "a torch.Tensor", TypeError, None, 1.0),
    *values("columns", rf"shape \[{COLUMNS}\]", ValueError, torch.zeros(COLUMNS + 8), torch.zeros(1, COLUMNS)),
)
TABLES = (
    Table("pack", wfkernels.pack, pack, PACK),
    Table("unpack", wfkernels.unpack, unpack, UNPACK),
    Table("pack_student", pack_student, student, STUDENT),
    Table("RowLayout", RowLayout, row_layout, ROW_LAYOUT),
    Table("tokens", LAYOUT.tokens, lambda: {"teachers": [2, 3], "cross": 1}, TEACHERS),
    Table("TokenLayout", TokenLayout, lambda: {"layout": LAYOUT, "teachers": (2, 3), "cross": 1}, TOKEN_LAYOUT),
    Table("select", LAYOUT.select, lambda: {"indices": [1]}, SELECT),
    Table("row_blocks", LAYOUT.row_blocks, lambda: {"rows": torch.zeros(2 * ROWS), "copies": 2}, ROW_BLOCKS),
    Table("column_blocks", LAYOUT.column_blocks, lambda: {"columns": torch.zeros(COLUMNS)}, COLUMN_BLOCKS),
)
