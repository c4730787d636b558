"""Loads, adapts and scores models: what training, sampling and evaluation share of one."""

if __name__ != "posttrain.models":
    raise ImportError("import posttrain.models, not models: a bare import would load a second copy of the package")
