"""What a job file may say, and the one-line errors where it says something else. Imports `redact` alone,
and neither torch nor Ray.
"""
