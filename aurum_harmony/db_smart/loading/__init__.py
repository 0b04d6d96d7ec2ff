"""How migrations are written, found, loaded and told apart by their checksums."""
