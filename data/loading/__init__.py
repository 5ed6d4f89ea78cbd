"""From shards to batches: what to read when, reading it, decoding it. Imports `order`, `shards`, `images`, `storage`,
`errors` and `parallel`."""
