"""Comparisons: every method and every control on the same held-out groups, measured in one run."""
