"""Who may write into a run's folder: one owner at a time, wherever the folder is."""
