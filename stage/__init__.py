"""What every stage process shares: its spec, its artifact, its errors, its lease and its tracker."""

if __name__ != "posttrain.stage":
    raise ImportError("import posttrain.stage, not stage: a bare import would load a second copy of the package")
