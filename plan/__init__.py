"""Counts parameters and memory; imports no torch."""

if __name__ != "posttrain.plan":
    raise ImportError("import posttrain.plan, not plan: a bare import would load a second copy of the package")
