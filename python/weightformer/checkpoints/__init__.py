"""Weight files: what is trusted at the door, and how files are written.

Files come from strangers. Two formats are read, safetensors and what `torch.load(weights_only=True)` takes, each in one
file or in shards with an index; nothing else is ever unpickled, so no file can run code. Every refusal is one line that
names the file and says what to do.
"""

from __future__ import annotations

from weightformer.checkpoints.checking import check_teachers
from weightformer.checkpoints.error import CheckpointError
from weightformer.checkpoints.reading import load, metadata
from weightformer.checkpoints.writing import SUFFIX, save

__all__ = ["SUFFIX", "CheckpointError", "check_teachers", "load", "metadata", "save"]
