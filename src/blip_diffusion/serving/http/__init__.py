"""The HTTP server: OpenAI-compatible images, jobs with events, subjects. Imports no torch."""
