"""Hugging Face: config.json to spec and back, and what a model's tensors are called in its checkpoints.

Semantics are those of transformers 5.23.0; neither it nor torch is imported.
"""

from dsc.compiler.hf.exporter import export_config
from dsc.compiler.hf.families import CheckpointNames, Family, checkpoint_names, family
from dsc.compiler.hf.importer import import_config, import_path

__all__ = [
    "CheckpointNames",
    "Family",
    "checkpoint_names",
    "export_config",
    "family",
    "import_config",
    "import_path",
]
