"""Commands of the pipeline, one function each."""
