"""What a user asks for: pictures and words in, pictures out."""
