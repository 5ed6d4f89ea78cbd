"""Where images come from, one module a source; data/commands/pack.py gives each its words on the command line."""
