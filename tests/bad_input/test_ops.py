"""Every mistake in a call gets the documented exception: one line that names op and argument and says what to do."""

from __future__ import annotations

import re

import pytest

from tests.bad_input import attention, bucket, explain, predict, rooms, rows
from tests.bad_input.table import Bad, Table, snapshot

TABLES: list[Table] = [
    table for module in (attention, bucket, rooms, rows, predict, explain) for table in module.TABLES
]
ENTRIES = [(table, entry) for table in TABLES for entry in table.entries]


def test_there_are_hundreds_of_kinds() -> None:
    assert len(ENTRIES) >= 200
    for table in TABLES:
        names = [entry.name for entry in table.entries]
        assert len(set(names)) == len(names), [name for name in names if names.count(name) > 1]


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.op)
def test_the_call_without_the_mistake_runs(table: Table) -> None:
    table.run(**table.good())


def named(table: Table, bad: Bad) -> str:
    """Return a short name that is the same in every process: without addresses and line breaks."""
    return re.sub(r"( object| of type object)? at 0x\w+|\s+", " ", f"{table.op}: {bad.name}")[:90]


@pytest.mark.parametrize(("table", "bad"), ENTRIES, ids=[named(*entry) for entry in ENTRIES])
def test_a_mistake_gets_one_line_that_says_what_to_do(table: Table, bad: Bad) -> None:
    call = table.good()
    bad.change(call)
    before = snapshot(call)
    with pytest.raises(Exception) as caught:
        table.run(**call)
    message = f"{caught.value}"
    assert type(caught.value) is bad.error, message
    rest = rf"expected (?=.*{bad.expected}).*, got .+" if bad.expected else ".*"
    assert re.fullmatch(rf"{bad.op or table.op}: {re.escape(bad.argument)}: {rest}", message), message
    assert snapshot(call) == before
