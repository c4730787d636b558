"""Generates outputs from a policy."""

if __name__ != "posttrain.sample":
    raise ImportError("import posttrain.sample, not sample: a bare import would load a second copy of the package")
