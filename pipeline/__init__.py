"""Stage graph, keys, launchers and the command line; imports no torch."""

if __name__ != "posttrain.pipeline":
    raise ImportError("import posttrain.pipeline, not pipeline: a bare import would load a second copy of the package")
