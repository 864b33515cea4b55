"""Layers to pipeline stages with uneven ends, and recompute under memory: integer programme and dynamic programme."""
