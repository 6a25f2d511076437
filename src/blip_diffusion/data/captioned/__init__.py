"""Images with captions of one's own: a folder of files, or tar shards."""
