"""Trains: base model, SFT, reward model, reference log-probabilities, DPO, KTO."""

if __name__ != "posttrain.train":
    raise ImportError("import posttrain.train, not train: a bare import would load a second copy of the package")
