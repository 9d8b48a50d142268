"""The prior network of diffusers, `PriorTransformer`, which Karlo, Kandinsky and ECLIPSE use."""
