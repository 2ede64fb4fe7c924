"""dcpnas_lite: DCP-NAS by derivation. `import dcpnas_lite as dcp` offers the names below; the rooms hold the rest."""

from importlib import import_module

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
    "SearchConfig": "algorithm.loop",
    "search": "algorithm.loop",
    "TrainConfig": "evaluation.training",
    "train": "evaluation.training",
    "MicroBench": "evaluation.microbench",
    "equations": "equations",
    "lab": "lab",
    "plots": "plots",
}
__all__ = list(_ROOMS)


def __getattr__(name: str):
    if name not in _ROOMS:
        raise AttributeError(f"module 'dcpnas_lite' has no attribute {name!r}")
    module = import_module(f".{_ROOMS[name]}", __name__)
    return module if name == _ROOMS[name] else getattr(module, name)


def __dir__() -> list[str]:
    return __all__
