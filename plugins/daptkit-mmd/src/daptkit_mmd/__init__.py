"""MMD and joint MMD: alignment by kernel mean embeddings."""
