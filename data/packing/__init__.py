"""Making, indexing and checking shards. Imports `shards`, `images`, `storage`, and the modules beside the wings:
`errors`, `splitmix`, `parallel`, `progress`, `ray_session`."""
