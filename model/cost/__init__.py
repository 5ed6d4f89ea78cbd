"""What a network costs: parameters, FLOPs, memory. Imports the networks and their layers."""
