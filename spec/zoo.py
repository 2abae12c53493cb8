"""What ships with the language: the models of spec/models and the clusters of spec/clusters, by name."""

from pathlib import Path

MODELS = Path(__file__).parent / "models"
CLUSTERS = Path(__file__).parent / "clusters"
STARTER = Path(__file__).parent / "starter.yaml"
"""The commented spec that `dsc init` writes."""
FIGURES = Path(__file__).parent / "zoo.json"
"""What `dsc zoo --json` prints: figures of every model and cluster. `make goldens` writes it."""


def names(folder: Path) -> list[str]:
    """The names that one of the two folders offers, sorted."""
    return sorted(path.stem for path in folder.glob("*.yaml"))


def path_of(name: str, folder: Path) -> Path | None:
    """The file behind a name; None for anything that is no name of the folder, paths included."""
    return folder / f"{name}.yaml" if name in names(folder) else None
