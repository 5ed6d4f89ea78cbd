"""From shards to batches: what to read when, reading it, decoding it. Imports `order`, `shards`, `images` and
`storage`.
"""
