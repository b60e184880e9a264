"""rows -> tokens: per-layer linear, activation, teacher/position/layer codes and LayerNorm over ragged rows."""
