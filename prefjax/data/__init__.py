"""From records on disk to token ids: sources, tokenizers, prepared data."""
