"""Where jobs run: clusters and the tracking server."""
