"""Every knob, as Hydra groups."""

if __name__ != "posttrain.conf":
    raise ImportError("import posttrain.conf, not conf: a bare import would load a second copy of the package")
