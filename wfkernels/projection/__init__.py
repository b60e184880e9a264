"""tokens -> rows: per-layer linear around a base, de-normalised and written into the student buffer."""
