"""How each database makes a schema change: one folder for each kind of database."""
