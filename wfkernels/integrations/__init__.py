"""Other libraries' models on our kernels: `patch(model)` swaps the computation of their attention, `unpatch` undoes it.

See docs/integrations.md for what is covered. timm and transformers are never imported for a user who has not.
"""

from wfkernels.integrations.patching import patch, unpatch
from wfkernels.integrations.report import Entry, Report

__all__ = ["Entry", "Report", "patch", "unpatch"]
