"""Networks of priors: their interface, and the causal transformer of DALLE2-pytorch."""
