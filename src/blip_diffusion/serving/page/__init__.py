"""The web page: a Gradio app over the job service. Imports no torch."""
