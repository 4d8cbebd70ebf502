"""One page that shows what a conversion gained."""
