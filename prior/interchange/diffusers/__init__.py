"""Reading and writing of diffusers' priors (`PriorTransformer`) without diffusers."""
