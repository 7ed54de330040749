"""Driver of prior-fitted tables: trained on made-up tables, tested on real ones."""
