"""What a life is judged by: undisturbed texts, memory over time, what is left behind."""
