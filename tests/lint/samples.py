"""What the tests of this folder share."""

#: A table with 200 rows.
MAKE = """
@migration
def make(op: Operations):
    op.create_table("orders", Column("id", Integer, primary_key=True), Column("number", Integer))
    op.execute("INSERT INTO orders (id, number) VALUES (:id, :id)", [{"id": number} for number in range(1, 201)])
"""
