"""Time, memory and correctness of our implementations beside what else a user could run.

One program per room, and `predict` and `patched` for the whole: `python benchmarks/attention.py --preset quick`. A
program lists cases (`case.py`); `harness.py` judges every contender of a case (`gate.py`), then measures its memory
(`memory.py`) and its time (`timing.py`) and writes rows, ratios and facts about the machine (`machine.py`).
"""
