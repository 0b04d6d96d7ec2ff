"""Where models and database differ: found, told and written as a migration."""
