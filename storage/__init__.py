"""The database: engine, transactions, column types, schema, migrations."""
