"""Fine-tuning with labels: a tagger of words or a classifier of texts, out of any decoder or encoder."""
