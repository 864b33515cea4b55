"""Several jobs on machines and money that they share: one row of its own table for each, by integer programme."""
