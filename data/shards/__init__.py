"""The format on disk: tar files, their index and the fields of a sample. Imports `storage` and `errors`."""
