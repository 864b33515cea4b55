"""Studies: many questions asked in one file, answered on many processes, kept in one database that survives a kill."""
