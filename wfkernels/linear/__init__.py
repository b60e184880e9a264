"""The products of predict's blocks: act(x) W^T + b."""
