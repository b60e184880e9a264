"""rows -> student weights: embedding, attention blocks and projection as one autograd.Function."""
