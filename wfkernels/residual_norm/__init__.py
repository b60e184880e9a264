"""LayerNorm(residual + dropout(x)), returning the sum as well: one op for pre- and post-LN blocks."""
