"""The main job: a decoder in, an encoder folder out."""
