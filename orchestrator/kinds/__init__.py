"""What each kind of job does, on the driver. Imports every wing but `commands`. The table of kinds is
`orchestrator.job.tables.KINDS`.
"""
