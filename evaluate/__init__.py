"""Scores models, compares them and writes the report."""

if __name__ != "posttrain.evaluate":
    raise ImportError("import posttrain.evaluate, not evaluate: a bare import would load a second copy of the package")
