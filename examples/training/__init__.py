"""A recipe that trains a small language model and distils its draft: corpus to checkpoint."""
