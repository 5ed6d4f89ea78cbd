"""Ray clusters: what a private one needs of this machine, what an address must be, and limits of time for both. What
Ray says in pages, or only after minutes, is one line here.
"""
