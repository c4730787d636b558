"""Turns sources into curated datasets, on the CPU."""

if __name__ != "posttrain.data":
    raise ImportError("import posttrain.data, not data: a bare import would load a second copy of the package")
