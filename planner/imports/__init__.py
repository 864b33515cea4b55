"""What users have already: launch scripts and descriptions of machines, read as text and never run."""
