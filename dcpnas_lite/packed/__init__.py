"""One bit for real: a trained 1-bit network in packed words, run by XNOR and bit count; only `export` needs torch."""

from .network import PackedNetwork, load

__all__ = ["PackedNetwork", "export", "load"]


def __getattr__(name: str):
    if name == "export":
        from .fold import export

        return export
    raise AttributeError(f"module 'dcpnas_lite.packed' has no attribute {name!r}")
