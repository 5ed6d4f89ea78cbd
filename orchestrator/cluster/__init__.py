"""Ray: joining a cluster, starting workers, and what happens when nodes come, go or fail. Imports `run`, `job`
and `engine.cpu`.
"""
