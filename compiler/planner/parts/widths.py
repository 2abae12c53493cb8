"""Bytes of the types that the spec's `precision` names."""

BYTES = {"bf16": 2, "fp32": 4, "none": 0}
