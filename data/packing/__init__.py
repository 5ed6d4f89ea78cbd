"""Making, indexing and checking shards. Imports `shards`, `images`, `storage`, and the modules beside the wings:
`errors`, `splitmix`, `version`, `parallel`, `progress`, `ray_session`."""
