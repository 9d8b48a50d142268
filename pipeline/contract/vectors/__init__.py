"""Arrays of embeddings in files, and the rules that decide which vectors are valid."""
