"""The report of an evaluation: its schema, and its views as Markdown, HTML and a chart."""
