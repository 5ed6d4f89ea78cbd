"""What every worker of a run executes: the loop, its parts, the measurements on held-out sets. Imports every wing
but `kinds`, `commands` and `report`.
"""
