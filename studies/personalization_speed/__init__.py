"""The number of steps of few-shot tuning, DreamBooth and Textual Inversion for the same subject fidelity."""
