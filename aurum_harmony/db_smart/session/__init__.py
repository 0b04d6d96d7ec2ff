"""What a migration's code talks to while it runs: its transaction, its connection and its journal."""
