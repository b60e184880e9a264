"""tokens -> tokens: multi-head attention with a learned bias or gate, dense or ragged."""
