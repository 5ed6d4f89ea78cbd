"""Near-duplicates: copies of test images in a training set. Imports `order`, `shards`, `images`, `storage`, `errors`
and `parallel`."""
