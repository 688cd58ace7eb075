"""The resident mode: plugins without the start of an interpreter. Nothing else imports it."""
