"""What the system costs beside the step."""
