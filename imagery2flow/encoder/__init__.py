"""From patches to an encoder, and from an encoder to a table of embeddings."""
