"""Commands of the pipeline, one module each."""
