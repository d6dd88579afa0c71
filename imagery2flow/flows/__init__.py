"""From embeddings and observed flows to a model of flows, its predictions and their scores."""
