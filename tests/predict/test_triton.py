"""The whole chain of predict in Triton's interpreter."""

from __future__ import annotations

import pytest

from tests import interpreted

pytest.importorskip("triton")


@pytest.mark.parametrize("part", range(interpreted.PARTS))
def test_every_op_of_the_chain_is_no_worse_than_eager(part: int) -> None:
    interpreted.check("tests.predict.interpreted", part)
