"""The network of a prior: a causal transformer, its cache, and its linear layers."""
