"""One page that shows what a conversion gained: measured, set in sections, and drawn."""
