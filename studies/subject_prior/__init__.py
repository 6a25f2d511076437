"""The study of the prior of subjects: whether invented subjects are of their category, differ, and are new."""
