"""What a run says about itself: curves, speed, bad samples, sample ids, traces. Imports `tracking`, `engine`, `run`
and `job`.
"""
