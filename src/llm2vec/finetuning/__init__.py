"""Fine-tuning with labels: taggers of words and classifiers of texts, from decoders or encoders."""
