"""Loading of priors, conversion between priorkit and DALLE2-pytorch, and safe reading of `.pth` checkpoints."""
