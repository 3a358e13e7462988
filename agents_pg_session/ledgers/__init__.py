"""Ledgers: a few verbs over one table each, in one shape: name a statement, pass values, map the row."""
