"""Files that are given for a spec and are something else: what they are, and what to do with them."""

import re

from dsc.spec.errors import DscError, Finding, Position

# What the text shows, what the file is, and the cure. The first that fits.
KINDS = (
    (r"(?m)^hardware_sha256: [0-9a-f]{64}$", "a plan", "give the spec it was made for; `dsc diff` compares plans"),
    (r'(?s)\A\s*\{.*"weight_map"\s*:', "the index of a checkpoint", "give the spec; `dsc import` reads a config.json"),
    (
        r'(?s)\A\s*\{.*"spec_sha256"\s*:',
        "the lock file of a package",
        "give the spec of the package",
    ),
    (r'(?s)\A\s*\{.*"(model_type|architectures)"\s*:', "a Hugging Face config.json", "dsc import {file} -o spec.yaml"),
    (r'(?s)\A\s*\{.*"\$defs"\s*:', "a JSON Schema", "give the spec; the schema is for editors"),
    (r"(?m)^packages:", "a project file", "`dsc compile` without a SPEC compiles what it lists"),
    (r"(?m)^gpus_per_node:", "the description of a cluster", "a spec names it: `cluster: {{kind: {file}, nodes: 1}}`"),
)


def refuse_foreign(text: str, file: str) -> None:
    """Raises DscError for a file that is known not to be a spec."""
    for pattern, what, help in KINDS:
        if re.search(pattern, text):
            message = f"this is {what}, not a spec"
            raise DscError([Finding("DSC008", message, help=help.format(file=file), position=Position(file, 1, 1))])
