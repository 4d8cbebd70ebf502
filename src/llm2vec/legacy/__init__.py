"""Version 0.2.3 (McGill-NLP/llm2vec): its API over our `Encoder`, its files, its import paths."""
