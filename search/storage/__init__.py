"""The database: Optuna's storage on PostgreSQL, patient and in bulk; the private server."""
