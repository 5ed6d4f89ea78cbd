"""Making, indexing and checking shards. Imports `shards`, `images` and `storage`."""
