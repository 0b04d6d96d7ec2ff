"""What a schema has, how it is to be changed, and what is refused."""
