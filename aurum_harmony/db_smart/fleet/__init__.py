"""Fleets: many databases or schemas, one for each tenant, and a ledger of how far each is."""
