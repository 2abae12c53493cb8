"""The training workload; costs per token are counted at these sizes."""

from dsc.spec.base import Count, Section


class Workload(Section):
    sequence_length: Count = 4096
    """Tokens per sequence."""
    global_batch: Count | None = None
    """Sequences per optimizer step; null: 8 for each GPU of the cluster."""
