"""Where images come from, one module a source. Imports `packing`, `shards`, `storage`, `errors`, `splitmix` and
`ray_session`; data/commands/pack_sources.py gives each source its options on the command line."""
