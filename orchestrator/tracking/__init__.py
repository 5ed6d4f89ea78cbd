"""MLflow: points and artifacts are queued on disk, and delivered beside training. Imports `run`, `job` and `redact`;
MLflow itself is imported by `tracking/mlflow_run.py` and `tracking/system_metrics.py` alone.
"""
