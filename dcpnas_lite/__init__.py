"""dcpnas_lite: DCP-NAS by derivation. `import dcpnas_lite as dcp` offers the names below; the rooms hold the rest."""

from importlib import import_module

__version__ = "0.1.0"

_ROOMS = {
    "digits": "data",
    "fashion_mnist": "data",
    "cifar10": "data",
    "Space": "network.supernet",
    "MICRO": "network.supernet",
    "PAPER": "network.supernet",
    "Supernet": "network.supernet",
    "Genotype": "network.genotype",
    "PUBLISHED": "network.genotype",
    "DiscreteNetwork": "network.discrete",
    "SearchConfig": "engine.config",
    "search": "engine.search",
    "TrainConfig": "evaluation.training",
    "train": "evaluation.training",
    "MicroBench": "evaluation.microbench",
}
_MODULES = {"equations": "checks.equations", "lab": "checks.lab", "plots": "report.plots"}
__all__ = [*_ROOMS, *_MODULES]


def __getattr__(name: str):
    if name in _MODULES:
        return import_module(f".{_MODULES[name]}", __name__)
    if name in _ROOMS:
        return getattr(import_module(f".{_ROOMS[name]}", __name__), name)
    raise AttributeError(f"module 'dcpnas_lite' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
