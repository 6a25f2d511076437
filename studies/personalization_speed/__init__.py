"""How much sooner few-shot tuning knows a subject than DreamBooth and Textual Inversion do."""
