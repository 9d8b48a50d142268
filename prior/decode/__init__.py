"""Pictures from sampled embeddings, drawn by a decoder of diffusers."""
