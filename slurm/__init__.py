"""Templates for Slurm jobs."""

if __name__ != "posttrain.slurm":
    raise ImportError("import posttrain.slurm, not slurm: a bare import would load a second copy of the package")
