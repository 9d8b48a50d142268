"""Prior networks: the common interface, and DALLE2-pytorch's causal transformer."""
