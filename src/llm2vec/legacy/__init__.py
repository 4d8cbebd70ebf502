"""Version 0.2.3: its API over our encoder, its files and its import paths. Nothing else imports this folder."""
